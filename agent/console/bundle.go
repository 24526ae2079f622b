package console

import (
	"archive/tar"
	"bytes"
	"cmp"
	"compress/gzip"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"time"

	"shoal/agent/host"
	"shoal/agent/ledger"
	"shoal/agent/probe"
)

// archive is a tar.gz in the making. Bundles and backups are small: logs have a limit, and a ledger is a few MiB.
type archive struct {
	at    time.Time
	names map[string]bool
	out   bytes.Buffer
	gz    *gzip.Writer
	tar   *tar.Writer
}

func newArchive(at time.Time) *archive {
	a := &archive{at: at, names: map[string]bool{}}
	a.gz = gzip.NewWriter(&a.out)
	a.tar = tar.NewWriter(a.gz)
	return a
}

func (a *archive) add(name string, content []byte, mode fs.FileMode) error {
	name = strings.TrimPrefix(name, "/")
	if a.names[name] {
		return nil
	}
	a.names[name] = true
	if err := a.tar.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: name, Size: int64(len(content)), Mode: int64(mode.Perm()), ModTime: a.at}); err != nil {
		return err
	}
	_, err := a.tar.Write(content)
	return err
}

// tree adds the regular files of a directory, by their whole paths. What goes away meanwhile is left out; change, if it is not nil, sees each
// content first.
func (a *archive) tree(dir string, change func([]byte) []byte) error {
	return filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err != nil || !e.Type().IsRegular() {
			return err
		}
		info, err := e.Info()
		if err == nil {
			var b []byte
			if b, err = os.ReadFile(path); err == nil {
				if change != nil {
					b = change(b)
				}
				return a.add(path, b, info.Mode())
			}
		}
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		return err
	})
}

// write puts the whole archive in place, for root alone.
func (a *archive) write(name string) error {
	if err := a.tar.Close(); err != nil {
		return err
	}
	if err := a.gz.Close(); err != nil {
		return err
	}
	return host.WriteFile(name, a.out.Bytes(), 0o600)
}

// Mask replaces secrets in texts.
type Mask struct{ known []string }

// masked stands in a secret's place.
const masked = "[masked]"

// shapes are what secrets look like, whoever made them: seeds of NATS keys, JWTs, join tokens (their id stays), PEM, age's keys, password hashes.
func shapes() []*regexp.Regexp {
	return []*regexp.Regexp{
		regexp.MustCompile(`\bS[ANOCUX][A-Z2-7]{56}\b`),
		regexp.MustCompile(`\beyJ[A-Za-z0-9_-]+\.[A-Za-z0-9_-]*(\.[A-Za-z0-9_-]*)?`),
		regexp.MustCompile(`\bshoal1\.[A-Za-z0-9_-]*\.[A-Za-z0-9_.-]+`),
		regexp.MustCompile(`(?s)-----BEGIN [A-Z ]*PRIVATE KEY-----.*?(-----END [A-Z ]*PRIVATE KEY-----|\z)`),
		regexp.MustCompile(`\bAGE-SECRET-KEY-1[A-Z0-9]+`),
		regexp.MustCompile(`\$(?:[0-9a-z]{1,2}|argon2id|yescrypt)\$[./A-Za-z0-9$=,+]{16,}`),
	}
}

// assignment is a value that is given to a name which says that it is secret: in JSON, flags, environments, units.
var assignment = regexp.MustCompile(`(?i)("?[a-z0-9_.-]*(?:password|passwd|passphrase|secret|token|private[_-]?key|seed)[a-z0-9_-]*"?\s*[:= ]\s*)("(?:[^"\\]|\\.)*"|[^\s",;&{}\[\]]+)`)

// NewMask knows what secrets look like, and those of the host whose data directory this is.
func NewMask(data string) *Mask {
	m := &Mask{}
	for _, pattern := range []string{"identity*/*.seed", "identity*/*.creds", "identity*/token"} {
		files, err := filepath.Glob(filepath.Join(data, pattern))
		if err != nil {
			continue
		}
		for _, file := range files {
			b, err := os.ReadFile(file)
			if err != nil {
				continue
			}
			for line := range strings.Lines(string(b)) {
				// A token's parts may be told apart, by dots.
				for _, word := range append(strings.Split(strings.TrimSpace(line), "."), strings.TrimSpace(line)) {
					if len(word) >= 12 && !strings.HasPrefix(word, "---") && !strings.HasPrefix(word, "*") {
						m.known = append(m.known, word)
					}
				}
			}
		}
	}
	// The longest first, so that no part of a secret is left of it.
	slices.SortFunc(m.known, func(a, b string) int { return cmp.Or(len(b)-len(a), strings.Compare(a, b)) })
	return m
}

// Text masks a text.
func (m *Mask) Text(b []byte) []byte {
	for _, secret := range m.known {
		b = bytes.ReplaceAll(b, []byte(secret), []byte(masked))
	}
	for _, shape := range shapes() {
		b = shape.ReplaceAll(b, []byte(masked))
	}
	return assignment.ReplaceAllFunc(b, func(found []byte) []byte {
		parts := assignment.FindSubmatch(found)
		value := masked
		if bytes.HasPrefix(parts[2], []byte(`"`)) {
			value = `"` + masked + `"`
		}
		return append(slices.Clone(parts[1]), value...)
	})
}

// How much of logs a bundle takes.
const (
	bundleSince  = "-7 days"
	bundleLines  = "50000"
	bundleFile   = 8 << 20
	bundleWithin = 2 * time.Minute
)

// Bundle implements Actions: an archive for whoever looks into a problem, without secrets. What can't be had is named in it.
func (m *Machine) Bundle(ctx context.Context) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, bundleWithin)
	defer cancel()
	mask := NewMask(m.Data)
	a := newArchive(time.Now())
	var missing []string
	add := func(name string, b []byte, err error) error {
		if err != nil {
			missing = append(missing, fmt.Sprintf("%s: %s", name, mask.Text([]byte(err.Error()))))
			if len(b) == 0 {
				return nil
			}
		}
		return a.add(name, mask.Text(b), 0o600)
	}
	node := m.Look(ctx)
	// What is said of a host, and not what it is: paths of credentials and a fingerprint are no secrets.
	b, err := json.MarshalIndent(node, "", "  ")
	if err := add("node.json", b, err); err != nil {
		return "", err
	}
	doc, has, err := ledger.Read(filepath.Join(m.Data, "ledger"))
	if err == nil && has {
		b, err = json.MarshalIndent(doc, "", "  ")
	} else if err == nil {
		err = errors.New("there is no document")
		b = nil
	}
	if err := add("ledger.json", b, err); err != nil {
		return "", err
	}
	b, err = m.inventory(ctx)
	if err := add("inventory.json", b, err); err != nil {
		return "", err
	}
	for _, c := range []struct {
		name string
		host.Command
	}{
		{"journal.txt", host.Command{Name: "journalctl", Args: append([]string{"--no-pager", "--output=short-iso", "--since=" + bundleSince, "--lines=" + bundleLines}, journalUnits()...)}},
		{"kernel.txt", host.Command{Name: "dmesg", Args: []string{"--time-format=iso"}}},
		{"addresses.txt", host.Command{Name: "ip", Args: []string{"-details", "-statistics", "address"}}},
		{"routes.txt", host.Command{Name: "ip", Args: []string{"route", "show", "table", "all"}}},
		{"rules.txt", host.Command{Name: "iptables-save"}},
		{"disks.txt", host.Command{Name: "lsblk", Args: []string{"--output-all", "--json"}}},
		{"processes.txt", host.Command{Name: "ps", Args: []string{"-eo", "pid,ppid,user,stat,start,time,rss,args", "--sort", "pid"}}},
	} {
		out, err := m.Run.Run(ctx, c.Command)
		if err := add(c.name, out, err); err != nil {
			return "", err
		}
	}
	for _, pattern := range []string{"/var/log/shoal*.log", "/var/log/libvirt/qemu/*.log", "/etc/systemd/network/*", filepath.Join(m.Data, "connection.json"), filepath.Join(m.Data, "network", "*.json")} {
		files, err := filepath.Glob(pattern)
		if err != nil {
			return "", err
		}
		for _, file := range files {
			b, err := end(file)
			if err := add("files"+file, b, err); err != nil {
				return "", err
			}
		}
	}
	if err := a.add("missing.txt", []byte(strings.Join(missing, "\n")+"\n"), 0o600); err != nil {
		return "", err
	}
	name := filepath.Join(m.Archives, m.fileName("shoal-logs"))
	if err := a.write(name); err != nil {
		return "", fmt.Errorf("write bundle: %w", err)
	}
	return name, nil
}

func journalUnits() []string {
	var out []string
	for _, u := range units() {
		out = append(out, "--unit="+u)
	}
	return append(out, "--unit=shoal-network-*", "--unit=getty@tty1.service")
}

// inventory is what the agent tells of the machine, without the trial whether KVM works.
func (m *Machine) inventory(ctx context.Context) ([]byte, error) {
	p, err := probe.New(probe.Config{Data: m.Data, Run: m.Run})
	if err != nil {
		return nil, err
	}
	inv, err := p.Inventory(ctx)
	if err != nil {
		return nil, err
	}
	return json.MarshalIndent(inv, "", "  ")
}

// end is the end of a file, from the beginning of a line.
func end(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() {
		return nil, fmt.Errorf("%s is no regular file", path)
	}
	from := max(0, info.Size()-bundleFile)
	b := make([]byte, info.Size()-from)
	n, err := f.ReadAt(b, from)
	b = b[:n]
	if from > 0 {
		if i := bytes.IndexByte(b, '\n'); i >= 0 {
			b = b[i+1:]
		}
	}
	if n > 0 {
		err = nil
	}
	return b, err
}
