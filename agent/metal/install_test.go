package metal

import (
	"bytes"
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"shoal/agent/host"
	"shoal/agent/install"
	"shoal/desired"
	"shoal/desired/layout"
)

// runs counts commands and runs none.
type runs struct{ all []string }

func (r *runs) Run(_ context.Context, c host.Command) ([]byte, error) {
	r.all = append(r.all, c.String())
	return nil, errors.New("no command may run")
}

func files(t *testing.T, dir string, content map[string]string) {
	t.Helper()
	for name, c := range content {
		if err := os.MkdirAll(filepath.Dir(filepath.Join(dir, name)), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, name), []byte(c), 0o600); err != nil {
			t.Fatal(err)
		}
	}
}

// TestNothingRunsBeforeAllIsUnderstood: a wrong kickstart or a damaged medium ends the installation before its first command, %pre included.
func TestNothingRunsBeforeAllIsUnderstood(t *testing.T) {
	t.Parallel()
	const about = `{"id":"0123456789abcdef","mode":"expert"}`
	const good = "rootpw --lock\nautopart\n%pre\nexit 1\n%end\n"
	for name, test := range map[string]struct {
		host, medium map[string]string
		want         string
	}{
		"bare image":      {nil, nil, "shoalctl iso build"},
		"no kickstart":    {map[string]string{"host.json": about}, nil, "read the kickstart"},
		"wrong kickstart": {map[string]string{"host.json": about, "ks.cfg": good + "bogus\n"}, nil, `ks.cfg:6: unknown directive "bogus"`},
		"no image":        {map[string]string{"host.json": about, "ks.cfg": good}, nil, "the medium is damaged"},
		"damaged": {
			map[string]string{"host.json": about, "ks.cfg": good},
			map[string]string{"shoal/image.json": `{"size_mib":10}`, "shoal/sums": strings.Repeat("0", 64) + "  rootfs.squashfs\n", "shoal/rootfs.squashfs": "x"},
			"rootfs.squashfs is not what was written",
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var seen bytes.Buffer
			r := &runs{}
			cfg := Config{Medium: t.TempDir(), Host: t.TempDir(), Target: t.TempDir(), Runner: r, Console: NewConsole(&seen)}
			files(t, cfg.Host, test.host)
			files(t, cfg.Medium, test.medium)
			_, err := Run(t.Context(), cfg)
			if err == nil || !strings.Contains(err.Error(), test.want) || !strings.Contains(err.Error(), "nothing was changed on the disks") {
				t.Errorf("error is %v, want %s", err, test.want)
			}
			if len(r.all) > 0 {
				t.Errorf("commands were run: %v", r.all)
			}
			if left, _ := os.ReadDir(cfg.Target); len(left) > 0 {
				t.Errorf("something was written: %v", left)
			}
		})
	}
}

func TestTokenFileIsTheAgents(t *testing.T) {
	t.Parallel()
	if want := install.TokenFile(layout.AgentData); layout.AgentToken != want {
		t.Errorf("the installer writes the token to %s, and the agent reads %s", layout.AgentToken, want)
	}
}

// TestShoal: each mode gets its programs and units, and the token is for root alone.
func TestShoal(t *testing.T) {
	t.Parallel()
	token := desired.JoinToken{ID: "id", Secret: "secret", URLs: []string{"tls://10.0.0.1:4222"}}.Text()
	for mode, want := range map[desired.Mode]struct{ units, programs string }{
		desired.ModeManagement: {"libvirtd.service shoal-agent.service shoal-controller.service", "shoal-agent shoal-controller shoalctl"},
		desired.ModeCompute:    {"libvirtd.service shoal-agent.service", "shoal-agent"},
		desired.ModeStorage:    {"libvirtd.service nfs-kernel-server.service shoal-agent.service", "shoal-agent"},
		desired.ModeExpert:     {"", ""},
	} {
		t.Run(string(mode), func(t *testing.T) {
			t.Parallel()
			medium, root := t.TempDir(), t.TempDir()
			files(t, medium, map[string]string{"shoal/bin/shoal-agent": "a", "shoal/bin/shoal-controller": "c", "shoal/bin/shoalctl": "l"})
			i := &installer{cfg: Config{Medium: medium}, host: desired.HostMedium{Mode: mode}}
			if mode != desired.ModeExpert {
				i.host.Token = token
			}
			units, err := i.shoal(root)
			if err != nil {
				t.Fatal(err)
			}
			if got := strings.Join(units, " "); got != want.units {
				t.Errorf("units: %s, want %s", got, want.units)
			}
			console, err := os.ReadFile(filepath.Join(root, "etc/systemd/system/getty@tty1.service.d/shoal.conf"))
			if has := err == nil && strings.Contains(string(console), "\nExecStart=\nExecStart=-"+layout.BinDir+"/shoal-agent console --login\n"); has != (mode != desired.ModeExpert) {
				t.Errorf("the console on tty1: %q, %v", console, err)
			}
			var programs []string
			entries, err := os.ReadDir(filepath.Join(root, layout.BinDir))
			if err != nil && !errors.Is(err, fs.ErrNotExist) {
				t.Fatal(err)
			}
			for _, e := range entries {
				programs = append(programs, e.Name())
				if info, err := e.Info(); err != nil || info.Mode().Perm() != 0o755 {
					t.Errorf("%s: %v, %v", e.Name(), info.Mode(), err)
				}
			}
			if got := strings.Join(programs, " "); got != want.programs {
				t.Errorf("programs: %s, want %s", got, want.programs)
			}
			if i.host.Token == "" {
				return
			}
			b, err := os.ReadFile(filepath.Join(root, layout.AgentToken))
			info, statErr := os.Stat(filepath.Join(root, layout.AgentToken))
			if err != nil || statErr != nil || string(b) != token+"\n" || info.Mode().Perm() != 0o600 {
				t.Errorf("token: %q, %v, %v", b, err, statErr)
			}
			clock := layout.HostClock([]string{"tls://10.0.0.1:4222"})
			if b, err := os.ReadFile(filepath.Join(root, clock.Path)); err != nil || !strings.Contains(string(b), "server 10.0.0.1 iburst\n") {
				t.Errorf("sources of the clock: %q, %v", b, err)
			}
		})
	}
}
