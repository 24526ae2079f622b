// Package cmd holds the binaries, and the test of the repository's dependency rules.
package cmd

import (
	"encoding/json"
	"errors"
	"io"
	"os/exec"
	"slices"
	"strings"
	"testing"
)

// pkg is what `go list` says of a package.
type pkg struct {
	ImportPath  string
	Doc         string
	Imports     []string
	TestImports []string
	GoFiles     []string
}

func packages(t *testing.T) []pkg {
	t.Helper()
	cmd := exec.Command("go", "list", "-json=ImportPath,Doc,Imports,TestImports,GoFiles", "./...")
	cmd.Dir = ".."
	out, err := cmd.Output()
	if err != nil {
		var exit *exec.ExitError
		if errors.As(err, &exit) {
			t.Fatalf("go list: %v\n%s", err, exit.Stderr)
		}
		t.Fatal(err)
	}
	var all []pkg
	for d := json.NewDecoder(strings.NewReader(string(out))); ; {
		var p pkg
		if err := d.Decode(&p); errors.Is(err, io.EOF) {
			return all
		} else if err != nil {
			t.Fatal(err)
		}
		p.ImportPath = strings.TrimPrefix(p.ImportPath, "shoal/")
		all = append(all, p)
	}
}

// within reports whether a package lies in one of the trees.
func within(path string, trees ...string) bool {
	return slices.ContainsFunc(trees, func(tree string) bool { return path == tree || strings.HasPrefix(path, tree+"/") })
}

// ours are the imports from this module, without its name.
func ours(imports []string) []string {
	var out []string
	for _, i := range imports {
		if rest, ok := strings.CutPrefix(i, "shoal/"); ok {
			out = append(out, rest)
		}
	}
	return out
}

// kinds are the packages that drive one sort of thing on a host.
var kinds = []string{"agent/netdev", "agent/dhcp", "agent/secgroup", "agent/pool", "agent/volume", "agent/domain"}

// TestDependencyRules checks section 2 of the design: who may import whom.
func TestDependencyRules(t *testing.T) {
	mayNATS := []string{
		"controller/journal", "controller/publish", "controller/api", "controller/site", "controller/identity", "controller/store", "controller", "agent/link",
		"cmd/shoalctl",
	}
	for _, p := range packages(t) {
		if last := p.ImportPath[strings.LastIndex(p.ImportPath, "/")+1:]; slices.Contains([]string{"util", "utils", "common", "helpers", "types", "base", "manager", "misc"}, last) {
			t.Errorf("%s: the name says nothing", p.ImportPath)
		}
		if len(p.GoFiles) > 0 && p.Doc == "" {
			t.Errorf("%s has no package comment", p.ImportPath)
		}
		for _, i := range ours(p.Imports) {
			switch {
			case within(p.ImportPath, "subjects", "desired"):
				t.Errorf("%s imports %s: it must stand alone", p.ImportPath, i)
			case within(p.ImportPath, "controller") && within(i, "agent"), within(p.ImportPath, "agent") && within(i, "controller"):
				t.Errorf("%s imports %s: controller and agent share desired and subjects only", p.ImportPath, i)
			case slices.Contains(kinds, p.ImportPath) && slices.Contains(kinds, i):
				t.Errorf("%s imports %s: a kind never imports another", p.ImportPath, i)
			case p.ImportPath == "agent/engine" && i != "desired":
				t.Errorf("%s imports %s: the engine knows desired only", p.ImportPath, i)
			}
		}
		if p.ImportPath == "e2e" {
			for _, i := range ours(slices.Concat(p.Imports, p.TestImports)) {
				if i != "subjects" && i != "desired" {
					t.Errorf("e2e imports %s: it is a black-box test", i)
				}
			}
		}
		for _, i := range p.Imports {
			switch {
			case within(i, "github.com/nats-io/nats.go") && !slices.Contains(mayNATS, p.ImportPath):
				t.Errorf("%s imports %s", p.ImportPath, i)
			case within(i, "github.com/libvirt/libvirt-go-xml") && p.ImportPath != "agent/domain":
				t.Errorf("%s imports %s: documents never carry XML, only agent/domain makes it", p.ImportPath, i)
			case p.ImportPath == "subjects" && strings.Contains(i, "."):
				t.Errorf("subjects imports %s: it uses the standard library only", i)
			case within(p.ImportPath, "controller/plan", "controller/resource") &&
				(slices.Contains([]string{"os", "math/rand", "math/rand/v2", "crypto/rand"}, i) || within(i, "github.com/rs/zerolog", "github.com/nats-io")):
				t.Errorf("%s imports %s: it must be pure", p.ImportPath, i)
			}
		}
	}
}
