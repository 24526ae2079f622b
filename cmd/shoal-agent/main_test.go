package main

import (
	"bytes"
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"shoal/agent/install"
	"shoal/agent/sim/gate"
	"shoal/agent/update"
	"shoal/desired"
)

// run is one call of the binary.
func run(t *testing.T, stdin string, args ...string) (string, error) {
	t.Helper()
	cmd := command()
	var out bytes.Buffer
	cmd.SetArgs(args)
	cmd.SetIn(strings.NewReader(stdin))
	cmd.SetOut(&out)
	cmd.SetErr(&out)
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	err := cmd.ExecuteContext(ctx)
	return out.String(), err
}

func wants(t *testing.T, what, got string, want ...string) {
	t.Helper()
	for _, w := range want {
		if !strings.Contains(got, w) {
			t.Errorf("%s: no %q in\n%s", what, w, got)
		}
	}
	if strings.Contains(got, gate.Secret) {
		t.Errorf("%s shows the secret:\n%s", what, got)
	}
}

func TestJoinAndStatus(t *testing.T) {
	g := gate.New(t)
	data := filepath.Join(t.TempDir(), "data")
	out, err := run(t, "", "status", "--data", data)
	if err != nil {
		t.Fatal(err)
	}
	wants(t, "status before", out, "not joined", "shoalctl host token create", "does not run")

	manual := g.Token("manual", gate.Token{Uses: 1, Manual: true})
	out, err = run(t, "", "join", manual, "--data", data, "--no-wait", "--name", "h-one")
	if err != nil {
		t.Fatal(err)
	}
	wants(t, "join --no-wait", out, "shoalctl host approve h-one", "fingerprint")
	out, err = run(t, "", "status", "--data", data)
	if err != nil {
		t.Fatal(err)
	}
	wants(t, "status meanwhile", out, "joining", "fingerprint")

	g.Approve(g.Enrols()[0].PublicKey)
	out, err = run(t, manual+"\n", "join", "--token-file", "-", "--data", data)
	if err != nil {
		t.Fatal(err)
	}
	wants(t, "join", out, "this machine is host name-of-h1", "id           h1", g.URL(), "until", "next: shoal-agent --data "+data)
	out, err = run(t, "", "status", "--data", data)
	if err != nil {
		t.Fatal(err)
	}
	wants(t, "status", out, "h1", "name-of-h1", g.URL(), "until")

	file := filepath.Join(t.TempDir(), "token")
	if err := os.WriteFile(file, []byte(g.Token("auto", gate.Token{Uses: 1})), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err = run(t, "", "join", "--token-file", file, "--data", data); err == nil {
		t.Fatal("joined twice")
	}
	wants(t, "joined twice", err.Error(), "joined already", "shoal-agent status", "--force")
	out, err = run(t, "", "join", "--token-file", file, "--data", data, "--force")
	if err != nil {
		t.Fatal(err)
	}
	wants(t, "join --force", out, "name-of-h2", "who it was before is kept in "+data)
	if _, err := os.Stat(file); err != nil {
		t.Errorf("the file of the token was touched: %v", err)
	}
}

func TestJoin_Refused(t *testing.T) {
	g := gate.New(t)
	for name, c := range map[string]struct {
		args []string
		want []string
	}{
		"no token":          {[]string{"join"}, []string{"give the join token"}},
		"two tokens":        {[]string{"join", "x", "--token-file", "-"}, []string{"give the join token"}},
		"damaged":           {[]string{"join", g.TokenFor("x", "")[:40]}, []string{"parse join token"}},
		"name":              {[]string{"join", g.TokenFor("x", g.Authority.Pin), "--name", "a b"}, []string{"name:"}},
		"unknown":           {[]string{"join", g.TokenFor("x", g.Authority.Pin)}, []string{"not known", "shoalctl host token create"}},
		"pin":               {[]string{"join", g.TokenFor("x", strings.Repeat("cd", 32))}, []string{g.Authority.Pin, strings.Repeat("cd", 32), "nothing was sent"}},
		"nobody there":      {[]string{"join", desired.JoinToken{ID: "x", Secret: gate.Secret, URLs: []string{"tls://127.0.0.1:1"}}.Text()}, []string{"tls://127.0.0.1:1", "goes on with the token"}},
		"half of an old":    {[]string{"--nats-url", "nats://127.0.0.1:1"}, []string{"go with --creds"}},
		"no servers":        {[]string{"--creds", "x"}, []string{"--nats-url"}},
		"two ways":          {[]string{"--creds", "x", "--nats-url", "y", "--token-file", "z"}, []string{"give one"}},
		"force and no wait": {[]string{"join", "x", "--force", "--no-wait"}, []string{"no-wait"}},
	} {
		out, err := run(t, "", append(c.args, "--data", t.TempDir())...)
		if err == nil {
			t.Errorf("%s: accepted: %s", name, out)
			continue
		}
		wants(t, name, err.Error(), c.want...)
	}
}

func TestStatusText(t *testing.T) {
	now := time.Date(2026, 5, 1, 12, 0, 0, 0, time.UTC)
	s := install.Status{Joined: true, Host: "h1", Agent: 12, Expires: now.Add(-time.Hour), Connection: &install.Connection{Error: "refused", Since: now}}
	wants(t, "expired", statusText(s, now), "expired at", "process 12, not connected since", "refused")
	s.Connection = &install.Connection{Connected: true, Server: "tls://a:1", Since: now}
	wants(t, "connected", statusText(s, now), "connected to tls://a:1")
	wants(t, "rolled back", releaseText(update.Status{Current: "1.2", RolledBack: "1.3", Why: "it crashed"}), "release      1.2\n", "rolled back  1.3: it crashed\n")
	wants(t, "on trial", releaseText(update.Status{Trial: "1.3", Note: "not connected"}), "on trial     1.3: not connected\n")
	if text := releaseText(update.Status{}); text != "" {
		t.Errorf("of no releases it says %q", text)
	}
}
