package engine

import (
	"fmt"

	"shoal/desired"
)

// The shrink guard lets a generation remove guardFew items that count, or one in guardShare, whichever is more.
const (
	guardFew   = 3
	guardShare = 5
)

// guard approves or holds the unwanted items of a guarded kind that it has not judged at this generation: all or none, since
// a document that is wrong about some is not to be trusted about the rest. What is approved stays approved; what
// is held stays held until another generation.
func (e *Engine) guard(d *driver) {
	total, removing, held := 0, 0, false
	for _, it := range d.items {
		counts := it.have != nil && d.counts(it.have)
		if counts {
			total++
		}
		if it.doc == nil && !it.approved {
			held = held || it.held
			if counts {
				removing++
			}
		}
	}
	hold := !e.doc.Shrink && (held || removing > guardFew && removing*guardShare > total)
	if hold && !held {
		e.log.Error().Str("kind", string(d.name)).Uint64("gen", e.doc.Gen).Int("removing", removing).Int("total", total).Msg("removal held by the shrink guard")
	}
	for _, it := range d.items {
		if it.doc == nil && !it.approved {
			it.approved, it.held = !hold, hold
		}
	}
}

// heldFault is the fault of what guard holds.
func (e *Engine) heldFault(d *driver) *desired.Fault {
	return &desired.Fault{
		Code:    desired.CodeHeld,
		Message: fmt.Sprintf("generation %d removes more running items of kind %s than a fifth; nothing of that kind is removed", e.doc.Gen, d.name),
		Remedy:  "if so many are to go, confirm it by a document that allows to shrink; otherwise find out why they left the document",
	}
}
