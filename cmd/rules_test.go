// Package cmd holds the binaries, and the test of the repository's dependency rules.
package cmd

import (
	"encoding/json"
	"errors"
	"go/ast"
	"go/parser"
	"go/token"
	"io"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// pkg is what `go list` says of a package.
type pkg struct {
	ImportPath   string
	Dir          string
	Doc          string
	Imports      []string
	TestImports  []string
	XTestImports []string
	GoFiles      []string
}

func packages(t *testing.T) []pkg {
	t.Helper()
	cmd := exec.Command("go", "list", "-json=ImportPath,Dir,Doc,Imports,TestImports,XTestImports,GoFiles", "./...")
	cmd.Dir = ".."
	out, err := cmd.Output()
	if err != nil {
		if exit, ok := errors.AsType[*exec.ExitError](err); ok {
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
var kinds = []string{"agent/netdev", "agent/dhcp", "agent/secgroup", "agent/pool", "agent/volume", "agent/domain", "agent/update"}

// seams are what a kind may use besides its own backend; agent/xtables is one that dhcp and secgroup share.
var seams = []string{"desired", "agent/engine", "agent/host", "agent/xtables"}

// TestDependencyRules checks section 2 of the design: who may import whom.
func TestDependencyRules(t *testing.T) {
	mayNATS := []string{
		"controller/journal", "controller/publish", "controller/api", "controller/site", "controller/identity", "controller/store", "controller/history", "controller", "agent/link", "agent/install",
		"agent/sim/gate", "cmd/shoalctl",
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
			case within(p.ImportPath, "controller") && within(i, "agent"), within(p.ImportPath, "agent") && !within(p.ImportPath, "agent/sim") && within(i, "controller"):
				t.Errorf("%s imports %s: controller and agent share desired and subjects only", p.ImportPath, i)
			case slices.Contains(kinds, p.ImportPath) && !slices.Contains(seams, i) && !within(i, p.ImportPath):
				t.Errorf("%s imports %s: a kind uses %v and its own backend, never another kind", p.ImportPath, i, seams)
			case within(i, "agent/sim") && !within(p.ImportPath, "agent/sim", "scripts/fleet"):
				t.Errorf("%s imports %s: it is for tests", p.ImportPath, i)
			case p.ImportPath == "agent/engine" && i != "desired":
				t.Errorf("%s imports %s: the engine knows desired only", p.ImportPath, i)
			}
		}
		for _, i := range ours(slices.Concat(p.TestImports, p.XTestImports)) {
			switch {
			case within(p.ImportPath, "e2e") && i != "subjects" && i != "desired":
				t.Errorf("e2e imports %s: it is a black-box test", i)
			case within(p.ImportPath, "controller") && within(i, "agent"), within(p.ImportPath, "agent") && !within(p.ImportPath, "agent/sim") && within(i, "controller"):
				t.Errorf("the tests of %s import %s: controller and agent share desired and subjects only", p.ImportPath, i)
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

// TestPureCodeHasNoClock: what plan and resource decide depends on the time that they are given, so that a decision can be repeated.
func TestPureCodeHasNoClock(t *testing.T) {
	clock := []string{"Now", "Since", "Until", "Sleep", "After", "AfterFunc", "Tick", "NewTimer", "NewTicker"}
	seen := 0
	for _, p := range packages(t) {
		if p.ImportPath != "controller/plan" && p.ImportPath != "controller/resource" {
			continue
		}
		for _, name := range p.GoFiles {
			files := token.NewFileSet()
			file, err := parser.ParseFile(files, filepath.Join(p.Dir, name), nil, parser.SkipObjectResolution)
			if err != nil {
				t.Fatal(err)
			}
			seen++
			for _, use := range usesOf(file, "time", clock) {
				t.Errorf("%s: %s reads the clock: take the time as a parameter", files.Position(use.Pos()), use.Sel.Name)
			}
		}
	}
	if seen == 0 {
		t.Error("no file was looked at")
	}
}

// usesOf finds where a file names one of these things of a package, under whatever name it imports it.
func usesOf(file *ast.File, path string, names []string) []*ast.SelectorExpr {
	local := ""
	for _, i := range file.Imports {
		if i.Path.Value == `"`+path+`"` {
			local = path
			if i.Name != nil {
				local = i.Name.Name
			}
		}
	}
	var uses []*ast.SelectorExpr
	ast.Inspect(file, func(n ast.Node) bool {
		if s, ok := n.(*ast.SelectorExpr); ok && local != "" && slices.Contains(names, s.Sel.Name) {
			if x, ok := s.X.(*ast.Ident); ok && x.Name == local {
				uses = append(uses, s)
			}
		}
		return true
	})
	return uses
}

func TestUsesOf(t *testing.T) {
	for src, want := range map[string]int{
		`package p; import "time"; var a, b = time.Now(), time.Second`:                   1,
		`package p; import clock "time"; func f() { g(clock.Now); _ = time.Now }`:        1,
		`package p; import "shoal/time"; var a = time.Now()`:                             0,
		`package p; import "time"; type t struct{ Now time.Time }; func f(x t) { x.Now}`: 0,
	} {
		file, err := parser.ParseFile(token.NewFileSet(), "x.go", src, parser.SkipObjectResolution)
		if err != nil {
			t.Fatal(err)
		}
		if got := len(usesOf(file, "time", []string{"Now", "Since"})); got != want {
			t.Errorf("%s: %d uses, want %d", src, got, want)
		}
	}
}
