package desired

import (
	"encoding/json"
	"fmt"
)

// PageBytes is about how much of a document one answer holds.
const PageBytes = 600 << 10

// DocumentRequest asks an agent for the document in its ledger, page by page.
type DocumentRequest struct {
	// Gen is the generation of the first page; 0 for the first page itself.
	Gen uint64 `json:"gen,omitempty"`
	// After is the last item of the page before.
	After Ref `json:"after"`
}

// DocumentPage is the answer: items in order of their names, and in the first page the head.
type DocumentPage struct {
	Gen   uint64            `json:"gen"`
	Head  json.RawMessage   `json:"head,omitempty"`
	Items []json.RawMessage `json:"items,omitempty"`
	More  bool              `json:"more,omitempty"`
}

// Page is the page of a document that a request asks for.
func (d Document) Page(req DocumentRequest) (DocumentPage, error) {
	p := DocumentPage{Gen: d.Head.Gen}
	if req.Gen != 0 && req.Gen != d.Head.Gen {
		return p, fmt.Errorf("the document is of generation %d now, not %d: ask for it from the start", d.Head.Gen, req.Gen)
	}
	size := 0
	if req.Gen == 0 {
		head, err := d.Head.Encode()
		if err != nil {
			return p, fmt.Errorf("encode head: %w", err)
		}
		p.Head, size = head, len(head)
	}
	for _, ref := range d.Refs() {
		if req.Gen != 0 && ref.Compare(req.After) <= 0 {
			continue
		}
		b, err := d.Items[ref].Encode()
		if err != nil {
			return p, fmt.Errorf("encode %s: %w", ref, err)
		}
		// The first page may be just the head, any other has an item at least.
		if size > 0 && size+len(b) > PageBytes {
			p.More = true
			break
		}
		p.Items = append(p.Items, b)
		size += len(b)
	}
	return p, nil
}

// Assembly puts pages together.
type Assembly struct {
	doc  Document
	last Ref
}

// Next is what to ask for.
func (a *Assembly) Next() DocumentRequest { return DocumentRequest{Gen: a.doc.Head.Gen, After: a.last} }

// Add takes a page. The document is given once it is whole: every item is there and has the hash that the head says.
func (a *Assembly) Add(p DocumentPage) (doc Document, whole bool, err error) {
	if a.doc.Head.Gen == 0 {
		if a.doc.Head, err = DecodeHead(p.Head); err != nil {
			return doc, false, err
		}
		a.doc.Items = map[Ref]Item{}
	}
	if p.Gen != a.doc.Head.Gen {
		return doc, false, fmt.Errorf("put document together: a page is of generation %d, the head of %d", p.Gen, a.doc.Head.Gen)
	}
	for _, raw := range p.Items {
		it, err := DecodeItem(raw)
		if err != nil {
			return doc, false, err
		}
		if want := a.doc.Head.Items[it.Ref()]; want != Hash(raw) {
			return doc, false, fmt.Errorf("put document together: item %s has another hash than the head says", it.Ref())
		}
		a.doc.Items[it.Ref()], a.last = it, it.Ref()
	}
	if p.More {
		return doc, false, nil
	}
	if len(a.doc.Items) != len(a.doc.Head.Items) {
		return doc, false, fmt.Errorf("put document together: %d of %d items are there", len(a.doc.Items), len(a.doc.Head.Items))
	}
	return a.doc, true, nil
}
