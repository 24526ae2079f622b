package anaconda_test

import (
	"flag"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"shoal/controller/iso/anaconda"
	"shoal/desired/kickstart"
)

var update = flag.Bool("update", false, "write the golden files")

const releases = 4

func source(text string) kickstart.Source { return kickstart.Source{Name: "k", Text: []byte(text)} }

// TestVerdicts: what ksvalidator lets pass without a word Check lets pass, and what it complains of Check refuses or notes.
func TestVerdicts(t *testing.T) {
	t.Parallel()
	b, err := os.ReadFile("testdata/verdicts")
	if err != nil {
		t.Fatal(err)
	}
	n := 0
	for line := range strings.Lines(string(b)) {
		verdicts, text, ok := strings.Cut(strings.TrimSuffix(line, "\n"), "\t")
		if !ok || strings.HasPrefix(line, "#") {
			continue
		}
		n++
		var got strings.Builder
		for r := anaconda.Oldest; r <= anaconda.Newest; r++ {
			if notes, err := anaconda.Check(source(strings.ReplaceAll(text, `\n`, "\n")), r); err != nil || len(notes) > 0 {
				got.WriteByte('-')
			} else {
				got.WriteByte('+')
			}
		}
		if got.String() != verdicts {
			t.Errorf("ksvalidator says %s, Check %s: %s", verdicts, got.String(), text)
		}
	}
	if n < 800 {
		t.Errorf("only %d lines were looked at", n)
	}
}

// TestErrors: what is refused is named with its place and the next step, and all of it at once.
func TestErrors(t *testing.T) {
	t.Parallel()
	const text = "langg C\nnetwork --device=a --bondslave=x\n\nsshkey --username=root \"ssh-rsa A\"\npart / --size=many\n%packages --inst-langs=de\n%end\ntimesource --ntp-server=a\n%post\nnot --looked at\n%end\nautopart\n"
	_, err := anaconda.Check(source(text), 7)
	want := `k:1: unknown command "langg"; did you mean lang?
k:2: network has no option --bondslave; did you mean bondslaves?
k:4: RHEL 7 does not know sshkey; write it in %post
k:5: part: --size is "many", not a number
k:6: RHEL 7 does not know %packages --inst-langs; up to RHEL 8 they are --instLangs and --excludeWeakdeps, from 9 on --inst-langs and --exclude-weakdeps
k:8: RHEL 7 does not know timesource; use timezone --ntpservers
k:12: autopart and part, in k:5, exclude each other`
	if diff := cmp.Diff(want, fmt.Sprint(err)); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	notes, err := anaconda.Check(source("auth --enableshadow\ntimezone Etc/UTC --isUtc\n"), 9)
	if diff := cmp.Diff("[k:1: auth is deprecated in RHEL 9: use authselect k:2: timezone --isUtc is deprecated in RHEL 9: use --utc, and timesource for the servers]", fmt.Sprint(notes)); diff != "" || err != nil {
		t.Errorf("%v (-want +got):\n%s", err, diff)
	}
}

// adapted puts one of the files in testdata into the words of a release.
func adapted(name string, r anaconda.Release) (*anaconda.Adapted, error) {
	b, err := os.ReadFile(name)
	if err != nil {
		return nil, err
	}
	return anaconda.Adapt(kickstart.Source{Name: filepath.Base(name), Text: b, Open: func(name string) ([]byte, error) {
		if filepath.IsAbs(name) {
			return nil, fs.ErrNotExist
		}
		return os.ReadFile(filepath.Join("testdata", name))
	}}, r)
}

// TestAdapt: one file, in the words of every release.
func TestAdapt(t *testing.T) {
	t.Parallel()
	for r := anaconda.Oldest; r <= anaconda.Newest; r++ {
		t.Run(r.String(), func(t *testing.T) {
			t.Parallel()
			a, err := adapted("testdata/host.ks", r)
			if err != nil {
				t.Fatal(err)
			}
			got := a.Text
			for _, n := range a.Notes {
				got += "# note: " + n.String() + "\n"
			}
			golden := fmt.Sprintf("testdata/host.%s.golden", r)
			if *update {
				if err := os.WriteFile(golden, []byte(got), 0o600); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(golden)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(string(want), got); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
			// What was adapted needs nothing more.
			again, err := anaconda.Adapt(source(a.Text), r)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(a.Text, again.Text); diff != "" {
				t.Errorf("a second time changes it (-first +second):\n%s", diff)
			}
		})
	}
	for want, text := range map[string]string{
		"Anaconda takes names of interfaces for --bondslaves": "network --device=bond0 --bondslaves=52:54:00:00:00:01",
		"can't set up --nts":         "timesource --ntp-server=a --nts",
		"from the network":           "%include http://a/b",
		"k:1: %include gone.ks":      "%include gone.ks",
		"is not closed by %end":      "%packages\na",
		"too many files include":     "%include k",
		"no section that %end could": "%end",
		"%ksappend":                  "%ksappend http://a/b",
	} {
		_, err := anaconda.Adapt(kickstart.Source{Name: "k", Text: []byte(text), Open: func(name string) ([]byte, error) {
			if name == "k" {
				return []byte("%include k"), nil
			}
			return nil, fs.ErrNotExist
		}}, 8)
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", text, err)
		}
	}
}

// TestKsvalidator asks the real one, where there is one, about every adapted file and about a sample of the verdicts.
func TestKsvalidator(t *testing.T) {
	t.Parallel()
	if _, err := exec.LookPath("ksvalidator"); err != nil {
		t.Skip("SKIPPED: ksvalidator is not installed (Debian has no package of it; pip install pykickstart where there is one)")
	}
	asks := func(r anaconda.Release, text string) (bool, string) {
		name := filepath.Join(t.TempDir(), "ks.cfg")
		if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		out, err := exec.Command("ksvalidator", "--version", r.String(), name).CombinedOutput()
		return err == nil, string(out)
	}
	for r := anaconda.Oldest; r <= anaconda.Newest; r++ {
		a, err := adapted("testdata/host.ks", r)
		if err != nil {
			t.Fatal(err)
		}
		if ok, out := asks(r, a.Text); !ok {
			t.Errorf("%s: %s", r, out)
		}
	}
	b, err := os.ReadFile("testdata/verdicts")
	if err != nil {
		t.Fatal(err)
	}
	for i, line := range strings.Split(string(b), "\n") {
		verdicts, text, ok := strings.Cut(line, "\t")
		if !ok || i%200 != 0 {
			continue
		}
		for n := range releases {
			if ok, out := asks(anaconda.Oldest+anaconda.Release(n), strings.ReplaceAll(text, `\n`, "\n")+"\n"); ok != (verdicts[n] == '+') {
				t.Errorf("RHEL%d, %q: %v, %s", 7+n, text, ok, out)
			}
		}
	}
}

// TestKeysOfRelease7 runs the script that stands for sshkey there.
func TestKeysOfRelease7(t *testing.T) {
	t.Parallel()
	a, err := anaconda.Adapt(source("sshkey --username=ops \"ssh-rsa AAAA it's mine\"\nsshkey --username=ops \"ssh-rsa BBBB\"\n"), 7)
	if err != nil {
		t.Fatal(err)
	}
	_, script, ok := strings.Cut(a.Text, "%post --erroronfail\n")
	script, _, closed := strings.Cut(script, "%end\n")
	if !ok || !closed {
		t.Fatalf("no script in:\n%s", a.Text)
	}
	home, bin := t.TempDir(), t.TempDir()
	for name, body := range map[string]string{"getent": `[ "$2" = ops ] && echo "ops:x:1000:1000::` + home + `:/bin/sh"`, "chown": `[ "$1 $2" = "-R ops:" ]`, "restorecon": "true"} {
		if err := os.WriteFile(filepath.Join(bin, name), []byte("#!/bin/sh\n"+body+"\n"), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	cmd := exec.Command("/bin/sh", "-c", script)
	cmd.Env = append(os.Environ(), "PATH="+bin+":"+os.Getenv("PATH"))
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s\n%s", err, out, script)
	}
	got, err := os.ReadFile(filepath.Join(home, ".ssh/authorized_keys"))
	if err != nil || string(got) != "ssh-rsa AAAA it's mine\nssh-rsa BBBB\n" {
		t.Errorf("%q, %v", got, err)
	}
	if info, err := os.Stat(filepath.Join(home, ".ssh/authorized_keys")); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("%v, %v", info, err)
	}
}

// TestParseRelease: versions as people and media write them.
func TestParseRelease(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]anaconda.Release{"7": 7, "RHEL8": 8, "9.4": 9, "rhel10": 10, "6": 0, "11": 0, "": 0, "Fedora": 0} {
		if got, err := anaconda.ParseRelease(text); got != want || (err != nil) != (want == 0) {
			t.Errorf("%q is %d, %v", text, got, err)
		}
	}
}

// FuzzAdapt: no text makes it panic, and what was adapted is accepted as it is, in words that need no second change.
func FuzzAdapt(f *testing.F) {
	for _, name := range []string{"testdata/host.ks", "testdata/verdicts"} {
		b, err := os.ReadFile(name)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b, uint8(0))
		for line := range strings.Lines(string(b)) {
			_, text, _ := strings.Cut(line, "\t")
			f.Add([]byte(text), uint8(len(line)))
		}
	}
	f.Fuzz(func(t *testing.T, text []byte, n uint8) {
		r := anaconda.Oldest + anaconda.Release(n%releases)
		a, err := anaconda.Adapt(source(string(text)), r)
		if err != nil {
			return
		}
		again, err := anaconda.Adapt(source(a.Text), r)
		if err != nil {
			t.Fatalf("%v:\n%s", err, a.Text)
		}
		if again.Text != a.Text {
			t.Errorf("%q became %q", a.Text, again.Text)
		}
	})
}
