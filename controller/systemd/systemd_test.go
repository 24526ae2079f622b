package systemd

import (
	"slices"
	"strings"
	"testing"
)

// TestArgs: flags come back from the file as they went in, and what systemd would change is refused.
func TestArgs(t *testing.T) {
	t.Parallel()
	for _, args := range [][]string{nil, {"--listen", "10.0.0.1:4222", "--tls-name=cloud.example"}, {"--backup-to", "sftp://shoal@10.0.0.9/backups"}} {
		line, err := argsLine(args)
		if err != nil {
			t.Errorf("%q: %v", args, err)
		}
		if got := readArgs(line); !slices.Equal(got, args) {
			t.Errorf("%q came back as %q", args, got)
		}
	}
	if got := readArgs("# mine\nOTHER=x\nSHOAL_CONTROLLER_ARGS=\"--http  0.0.0.0:1\"\n"); !slices.Equal(got, []string{"--http", "0.0.0.0:1"}) {
		t.Errorf("an operator's line: %q", got)
	}
	for arg, want := range map[string]string{
		"": "white space", "a b": "white space", "it's": "quotes", "$HOME": "$", "%n": "%", `a\b`: "backslash", "a\nb": "white space",
		"--data": "the unit's own", "--data=/x": "the unit's own", "-data": "the unit's own", "--check": "the unit's own", "--first-password-file=/x": "the unit's own",
	} {
		if _, err := argsLine([]string{"--name", arg}); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v, want %s", arg, err, want)
		}
	}
}
