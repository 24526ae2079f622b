// Command shoal-installer is /init of the initramfs on Shoal's installation media; see package metal.
package main

import (
	"os"

	"shoal/agent/metal"
)

func main() { metal.Main(os.Args) }
