// Command shoalctl controls a Shoal private cloud; see package cli.
package main

import (
	"os"
	"runtime/debug"

	"shoal/controller/api/cli"
)

func main() { os.Exit(cli.Main(version(), os.Args[1:])) }

// version is what the build knows of itself.
func version() string {
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return "unknown"
	}
	v := info.Main.Version
	for _, s := range info.Settings {
		if s.Key == "vcs.revision" && (v == "" || v == "(devel)") {
			v = s.Value[:min(12, len(s.Value))]
		}
	}
	return v
}
