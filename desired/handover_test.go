package desired

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// big is a document of several pages.
func big(t *testing.T, items, bytes int) Document {
	t.Helper()
	d := Document{Head: Head{Host: "h1", Gen: 7, Items: map[Ref]string{}}, Items: map[Ref]Item{}}
	for i := range items {
		it, err := NewItem(KindPool, fmt.Sprintf("p%04d", i), &Pool{Type: PoolLocal, Path: "/srv/" + strings.Repeat("x", bytes)})
		if err != nil {
			t.Fatal(err)
		}
		it.Rev = uint64(i + 1)
		b, err := it.Encode()
		if err != nil {
			t.Fatal(err)
		}
		d.Items[it.Ref()], d.Head.Items[it.Ref()] = it, Hash(b)
	}
	return d
}

func TestHandover(t *testing.T) {
	for _, c := range []struct{ items, bytes, pages int }{{0, 1, 1}, {3, 10, 1}, {40, 100 << 10, 8}, {3, 700 << 10, 4}} {
		d := big(t, c.items, c.bytes)
		var a Assembly
		for n := 1; ; n++ {
			p, err := d.Page(a.Next())
			if err != nil {
				t.Fatal(err)
			}
			b, err := json.Marshal(p)
			if err != nil || len(b) > PageBytes+c.bytes+(100<<10) {
				t.Fatalf("page %d of %+v has %d bytes, %v", n, c, len(b), err)
			}
			var back DocumentPage
			if err := json.Unmarshal(b, &back); err != nil {
				t.Fatal(err)
			}
			got, whole, err := a.Add(back)
			if err != nil {
				t.Fatal(err)
			}
			if !whole {
				continue
			}
			if diff := cmp.Diff(d, got); diff != "" {
				t.Errorf("%+v (-want +got):\n%.400s", c, diff)
			}
			if n != c.pages {
				t.Errorf("%+v: %d pages", c, n)
			}
			break
		}
	}
}

func TestHandoverRefuses(t *testing.T) {
	d := big(t, 30, 60<<10)
	var a Assembly
	p, err := d.Page(a.Next())
	if err != nil {
		t.Fatal(err)
	}
	if _, _, err := a.Add(p); err != nil {
		t.Fatal(err)
	}
	d.Head.Gen++
	if _, err := d.Page(a.Next()); err == nil {
		t.Error("a page of another generation is handed out")
	}
	broken := p
	broken.Items = append([]json.RawMessage{}, p.Items...)
	broken.Items[0] = json.RawMessage(strings.Replace(string(p.Items[0]), `"rev":1`, `"rev":2`, 1))
	if _, _, err := new(Assembly).Add(broken); err == nil {
		t.Error("an item that is not the head's is taken")
	}
	broken.Items, broken.More = p.Items[1:], false
	if _, _, err := new(Assembly).Add(broken); err == nil {
		t.Error("a document that is not whole is taken")
	}
}
