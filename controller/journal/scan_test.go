package journal

import (
	"encoding/json"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"shoal/controller/resource"
)

// TestScan_EqualsDecode: what is encoded is scanned, and gives what decoding it gives.
func TestScan_EqualsDecode(t *testing.T) {
	rapid.Check(t, func(r *rapid.T) {
		var g Group
		for range rapid.IntRange(1, 4).Draw(r, "entries") {
			e := Entry{
				Request: resource.Request{ID: rapid.String().Draw(r, "request"), Caller: rapid.String().Draw(r, "caller"), Op: "x.y"},
				At:      time.Unix(rapid.Int64Range(0, 1<<33).Draw(r, "at"), 0).UTC(), Error: rapid.String().Draw(r, "error"), More: rapid.Uint64Range(0, 3).Draw(r, "more"),
			}
			if rapid.Bool().Draw(r, "params") {
				b, err := json.Marshal(map[string]any{rapid.String().Draw(r, "name"): []any{rapid.String().Draw(r, "param"), 1, nil, true, map[string]any{}}})
				if err != nil {
					r.Fatal(err)
				}
				e.Request.Params = b
			}
			for range rapid.IntRange(0, 3).Draw(r, "changes") {
				c := Change{Kind: "vm", ID: rapid.StringMatching("[A-Za-z0-9_-]{1,8}").Draw(r, "id")}
				if rapid.Bool().Draw(r, "value") {
					b, err := json.Marshal(rapid.SampledFrom([]any{map[string]any{"a": rapid.String().Draw(r, "a"), "b": []int{1, 2}}, []any{}, "x", 12, true}).Draw(r, "v"))
					if err != nil {
						r.Fatal(err)
					}
					c.Value = b
				}
				e.Changes = append(e.Changes, c)
			}
			g.Entries = append(g.Entries, e)
		}
		b, err := g.Encode()
		if err != nil {
			r.Fatal(err)
		}
		got, ok := scanChanges(b)
		if !ok {
			r.Fatalf("it is not scanned: %s", b)
		}
		var want []Change
		decoded, err := Decode(b)
		if err != nil {
			r.Fatal(err)
		}
		for _, e := range decoded.Entries {
			want = append(want, e.Changes...)
		}
		if diff := cmp.Diff(want, got); diff != "" {
			r.Fatalf("%s (-decoded +scanned):\n%s", b, diff)
		}
	})
}

// FuzzScan: whatever is scanned gives what decoding it gives, if it can be decoded.
func FuzzScan(f *testing.F) {
	for _, s := range []string{
		`{"entries":[{"request":{"id":"a"},"at":"2026-01-01T00:00:00Z","changes":[{"kind":"vm","id":"v","value":{"a":"}\\""}},{"kind":"vm","id":"w"}]}]}`,
		`{"entries":[{"request":{},"at":"2026-01-01T00:00:00Z","error":"x","more":3}]}`, `{"entries":[]}`, `{"entries":[{"request":1,"at":"2026-01-01T00:00:00Z"}]}`,
	} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		got, ok := scanChanges(b)
		decoded, err := Decode(b)
		if !ok || err != nil {
			return
		}
		var want []Change
		for _, e := range decoded.Entries {
			want = append(want, e.Changes...)
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Fatalf("%s (-decoded +scanned):\n%s", b, diff)
		}
	})
}
