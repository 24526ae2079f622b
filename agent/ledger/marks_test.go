package ledger_test

import (
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/rs/zerolog"

	"shoal/agent/engine"
	"shoal/agent/ledger"
	"shoal/desired"
)

func TestMarks_AreThereForTheNextAgent(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	open := func(boot string) *ledger.Marks {
		t.Helper()
		m, err := ledger.OpenMarks(dir, boot, zerolog.Nop())
		if err != nil {
			t.Fatal(err)
		}
		return m
	}
	m := open("a")
	if marks, rebooted := m.Recall(); len(marks) > 0 || rebooted {
		t.Errorf("a first agent recalls %v, %v", marks, rebooted)
	}
	want := map[desired.Ref]engine.Mark{
		{Kind: desired.KindDomain, ID: "vm1"}: {Rev: 7, Drifts: 2, Drift: &desired.Drift{At: time.Unix(1e9, 0).UTC(), What: "stopped"}},
		{Kind: desired.KindPool, ID: "p1"}:    {Rev: 3},
	}
	m.Keep(want)
	if err := m.Flush(); err != nil {
		t.Fatal(err)
	}
	for boot, again := range map[string]bool{"a": false, "b": true} {
		marks, rebooted := open(boot).Recall()
		if d := cmp.Diff(want, marks); d != "" || rebooted != again {
			t.Errorf("boot %s: rebooted %v, %s", boot, rebooted, d)
		}
	}
}

func TestMarks_ThatCannotBeReadAreNone(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "drift.json"), []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	m, err := ledger.OpenMarks(dir, "a", zerolog.Nop())
	if err != nil {
		t.Fatal(err)
	}
	if marks, _ := m.Recall(); len(marks) > 0 {
		t.Errorf("recalls %v", marks)
	}
}
