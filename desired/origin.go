package desired

import (
	"bytes"
	"encoding/json"
	"fmt"
)

// Origin is what a controller wants to find again, should it lose everything, of the resources that a document was made from and
// that its other items do not tell: names, owners, tags, sizes on offer. A host keeps it in its ledger and does nothing
// about it: nothing is made, removed or reported. It holds no secret.
//
// An agent that does not know the kind refuses these items as it would any other, which keeps nothing else from being done.
type Origin struct {
	// Resources are the one that the item is named after, and those that belong to it, ordered by kind and id.
	Resources []OriginResource `json:"resources"`
}

// OriginResource is one resource. What is in it is the controller's business.
type OriginResource struct {
	// Kind is the resource's, such as "vm".
	Kind   string          `json:"kind"`
	Record json.RawMessage `json:"record"`
}

// Validate names the first field that is wrong.
func (o *Origin) Validate() error {
	if len(o.Resources) == 0 {
		return fmt.Errorf("resources: must not be empty")
	}
	for i, r := range o.Resources {
		if r.Kind == "" {
			return fmt.Errorf("resources[%d].kind: must be set", i)
		}
		if !bytes.HasPrefix(r.Record, []byte("{")) {
			return fmt.Errorf("resources[%d].record: is no object", i)
		}
	}
	return nil
}
