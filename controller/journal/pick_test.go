package journal

import (
	"encoding/json"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"shoal/controller/resource"
)

// FuzzPick: an entry that is picked out of a group is the one that decoding the whole group gives, whatever the texts in it are.
func FuzzPick(f *testing.F) {
	f.Add("a", `{"x":"}\\\""}`, "no", uint8(3))
	f.Add(`"}]\\`, `"\\"`, `{"`, uint8(0))
	f.Add("\\\\\"", `[{"a":[1,"]"]}]`, "\x00", uint8(1))
	f.Fuzz(func(t *testing.T, id, value, text string, n uint8) {
		if !json.Valid([]byte(value)) {
			value = `{}`
		}
		var g Group
		for i := range int(n%5) + 1 {
			g.Entries = append(g.Entries, Entry{
				Request: resource.Request{ID: id, Op: text, Params: []byte(value)}, At: time.Unix(int64(i), 0).UTC(), Error: text, Reply: []byte(value),
			})
			if i%2 == 1 {
				g.Entries[i].Changes = []Change{{Kind: resource.KindZone, ID: "z", Value: []byte(value)}}
			}
		}
		g.After = &Position{Seq: 7, ID: "x"}
		b, err := g.Encode()
		if err != nil {
			t.Skip()
		}
		whole, err := Decode(b)
		if err != nil {
			t.Fatal(err)
		}
		var all []int
		for i := range g.Entries {
			all = append(all, i)
			got, err := Pick(b, []int{i})
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(whole.Entries[i:i+1], got); diff != "" {
				t.Errorf("entry %d (-decoded +picked):\n%s", i, diff)
			}
		}
		if got, err := Pick(b, all); err != nil || len(got) != len(all) {
			t.Errorf("all: %d, %v", len(got), err)
		}
		if _, err := Pick(b, []int{len(all)}); err == nil {
			t.Error("an entry that is not there was picked")
		}
		for cut := range b {
			if got, err := Pick(b[:cut], all); err == nil && len(got) != len(all) {
				t.Errorf("%d bytes of %d give %d entries", cut, len(b), len(got))
			}
		}
	})
}
