package kickstart_test

import (
	"encoding/json"
	"errors"
	"flag"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"shoal/desired/kickstart"
)

var update = flag.Bool("update", false, "write the golden files anew")

const head = "rootpw --lock\n"

func open(name string) ([]byte, error) { return os.ReadFile(name) }

// TestGolden reads the files of testdata: what they mean, and what is wrong with them.
func TestGolden(t *testing.T) {
	t.Parallel()
	files, err := filepath.Glob("testdata/*.ks")
	if err != nil || len(files) < 3 {
		t.Fatalf("%d files: %v", len(files), err)
	}
	for _, name := range files {
		t.Run(filepath.Base(name), func(t *testing.T) {
			t.Parallel()
			text, err := os.ReadFile(name)
			if err != nil {
				t.Fatal(err)
			}
			ks, err := kickstart.Parse(kickstart.Source{Name: name, Text: text, Open: open, Early: strings.Contains(name, "full")})
			var got string
			if err != nil {
				got = err.Error() + "\n"
			} else {
				b, err := json.MarshalIndent(ks, "", " ")
				if err != nil {
					t.Fatal(err)
				}
				got = string(b) + "\n"
			}
			golden := strings.TrimSuffix(name, ".ks") + ".golden"
			if *update {
				if err := os.WriteFile(golden, []byte(got), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(golden)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(string(want), got); diff != "" {
				t.Errorf("differs (-want +got):\n%s", diff)
			}
		})
	}
}

// TestEveryWrongLineIsFound: in wrong.ks every line but the bodies of sections is wrong, alone or with another.
func TestEveryWrongLineIsFound(t *testing.T) {
	t.Parallel()
	text, err := os.ReadFile("testdata/wrong.ks")
	if err != nil {
		t.Fatal(err)
	}
	_, err = kickstart.Parse(kickstart.Source{Name: "testdata/wrong.ks", Text: text, Open: open})
	errs, ok := errors.AsType[kickstart.Errors](err)
	if !ok {
		t.Fatalf("error is %v", err)
	}
	lines := map[int]bool{}
	for _, e := range errs {
		if e.At.File == "testdata/wrong.ks" {
			lines[e.At.Line] = true
		}
	}
	for i, line := range strings.Split(strings.TrimSpace(string(text)), "\n") {
		good := line == "part raid.1 --size=100" || line == "%packages" || line == "%end" || line == "reboot" || line == "%include included.ks" || line == "never closed"
		if !lines[i+1] && !good {
			t.Errorf("line %d is not complained about: %s", i+1, line)
		}
	}
}

func TestOneLine(t *testing.T) {
	t.Parallel()
	const root = head + "part / --size=1 --grow\n"
	for name, test := range map[string]struct{ text, want string }{
		"suggestion":          {root + "netwok --device=eth0", `k:3: unknown directive "netwok"; did you mean network?`},
		"option":              {root + "user --name=a --pasword=x", "k:3: user has no option --pasword; did you mean password?"},
		"abbreviation":        {root + "user --name=a --gec=x", "k:3: user has no option --gec; did you mean gecos?"},
		"value of a flag":     {root + "zerombr\nreboot --eject=yes", "k:4: reboot: --eject takes no value"},
		"encryption":          {head + "part / --size=1 --encrypted", "k:2: part: --encrypted: encrypted disks are not supported: nobody could type a passphrase at an unattended start"},
		"no root":             {head + "part /boot --size=1", "k: the file makes no root file system; add part / or autopart"},
		"no rootpw":           {"autopart", "k: the file has no rootpw; add a password, or rootpw --lock with a user"},
		"autopart and part":   {head + "autopart\npart / --size=1", "k:2: autopart and lines that make partitions exclude each other"},
		"twice":               {root + "zerombr\nzerombr", "k:4: zerombr is there already, in k:3"},
		"unused member":       {root + "part pv.1 --size=1", "k:3: pv.1 is made and not used"},
		"missing member":      {root + "volgroup vg pv.9", "k:3: volgroup: no line makes pv.9"},
		"same mount":          {root + "part / --size=2", "k:3: the mount point or member / is there already, in k:2"},
		"key of nobody":       {root + `sshkey --username=x "ssh-rsa AAAA"`, "k:3: sshkey: there is no user x; add a user line"},
		"long device":         {root + "network --device=averyverylongname", `k:3: network: "averyverylongname" is not a network device, a MAC, link or bootif`},
		"slave with address":  {root + "network --device=b --bondslaves=e0 --noipv4\nnetwork --device=e0 --ip=1.2.3.4 --netmask=24", "k:4: network: e0 belongs to b and can't have an address; give the address to b"},
		"hash in a word":      {root + "user --name=a --password=x#y", "k:3: there is a # inside a word; put the word in quotes, or a space before the #"},
		"recursion":           {root + "%include k", "k:3: %include k: nothing can be included here"},
		"injected path":       {root + "part /../etc --size=1", `k:3: part: "/../etc" is not a mount point`},
		"newline in a string": {root + "user --name=a --gecos='x\n'", "k:3: a quote is not closed"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			_, err := kickstart.Parse(kickstart.Source{Name: "k", Text: []byte(test.text)})
			if err == nil {
				t.Fatal("accepted")
			}
			first, _, _ := strings.Cut(err.Error(), "\n")
			if diff := cmp.Diff(test.want, first); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
}

// TestIncludesBeforeAndAfterPre: what %pre writes is read afterwards, and what can be known before is checked before.
func TestIncludesBeforeAndAfterPre(t *testing.T) {
	t.Parallel()
	const text = head + "%include /tmp/disk.ks\n%pre\necho hi\n%end\n"
	absent := func(string) ([]byte, error) { return nil, fs.ErrNotExist }
	early, err := kickstart.Parse(kickstart.Source{Name: "k", Text: []byte(text), Open: absent, Early: true})
	if err != nil {
		t.Fatal(err)
	}
	if s := early.ScriptsOf(kickstart.Pre); len(s) != 1 || s[0].Body != "echo hi\n" || s[0].At.Line != 3 {
		t.Errorf("scripts: %+v", s)
	}
	if _, err := kickstart.Parse(kickstart.Source{Name: "k", Text: []byte(text), Open: absent}); err == nil {
		t.Error("a file that is still missing after the scripts is accepted")
	}
	if _, err := kickstart.Parse(kickstart.Source{Name: "k", Text: []byte(text + "bogus\n"), Open: absent, Early: true}); err == nil {
		t.Error("an unknown directive is not found before the scripts run")
	}
	written := func(string) ([]byte, error) { return []byte("part / --size=5\nbogus"), nil }
	if _, err := kickstart.Parse(kickstart.Source{Name: "k", Text: []byte(text), Open: written}); err == nil || err.Error() != `/tmp/disk.ks:2: unknown directive "bogus"` {
		t.Errorf("error is %v", err)
	}
	loop := func(string) ([]byte, error) { return []byte("%include x"), nil }
	if _, err := kickstart.Parse(kickstart.Source{Name: "k", Text: []byte(text), Open: loop}); err == nil || !strings.Contains(err.Error(), "include each other") {
		t.Errorf("error is %v", err)
	}
}

// FuzzParse: no text makes the parser panic, and what is refused is refused with a place.
func FuzzParse(f *testing.F) {
	files, err := filepath.Glob("testdata/*.ks")
	if err != nil {
		f.Fatal(err)
	}
	for _, name := range files {
		text, err := os.ReadFile(name)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(text)
		for line := range strings.SplitSeq(string(text), "\n") {
			f.Add([]byte(head + "part / --size=1\n" + line))
		}
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		ks, err := kickstart.Parse(kickstart.Source{Name: "k", Text: text, Open: func(string) ([]byte, error) { return []byte("skipx\n%include x"), nil }})
		if (ks == nil) == (err == nil) {
			t.Fatalf("both or neither: %v, %v", ks, err)
		}
		errs, _ := errors.AsType[kickstart.Errors](err)
		for _, e := range errs {
			if e.At.File == "" || e.Message == "" {
				t.Errorf("an error without a place or a text: %+v", e)
			}
		}
		if err != nil {
			return
		}
		// What was accepted can be put into shell words, unit files and tables without quoting.
		for _, x := range ks.Networks {
			if strings.ContainsAny(x.Name+x.Device, " \t\n/;$") {
				t.Errorf("device %q", x.Name)
			}
		}
		for _, x := range ks.Parts {
			if strings.ContainsAny(x.Mount+x.Type+x.Options+x.Label, " \t\n;$") {
				t.Errorf("partition %+v", x)
			}
		}
		for _, u := range ks.Users {
			if strings.ContainsAny(u.Name+u.Home+u.Shell, " \t\n:;$") || strings.Contains(u.Password, "\n") {
				t.Errorf("user %+v", u)
			}
		}
	})
}
