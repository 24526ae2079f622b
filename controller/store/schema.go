package store

import (
	"fmt"
	"slices"

	"github.com/hashicorp/go-memdb"

	"shoal/controller/resource"
	"shoal/desired"
)

// Tables beside those of the kinds, and indexes.
const (
	tableHolders = "_holders" // unique key -> holder
	indexID      = "id"
	indexName    = "name"
	indexRefs    = "refs"
	indexOwner   = "owner"
	indexDrifted = "drifted"

	tableStatus = "status" // item of a host -> what the agent reported
	tableHosts  = "hosts"  // host -> what is known of it as a whole, and what was published for it
)

// holder is the resource that has a unique key.
type holder struct {
	key  string
	kind resource.Kind
	id   string
}

// resourceSchema has a table for each kind and one for the unique keys of all.
func resourceSchema() *memdb.DBSchema {
	s := &memdb.DBSchema{Tables: map[string]*memdb.TableSchema{
		tableHolders: {Name: tableHolders, Indexes: map[string]*memdb.IndexSchema{
			indexID: {Name: indexID, Unique: true, Indexer: textIndex{func(o any) string { return o.(*holder).key }}},
		}},
	}}
	for _, k := range resource.Kinds() {
		s.Tables[string(k)] = &memdb.TableSchema{Name: string(k), Indexes: map[string]*memdb.IndexSchema{
			indexID:   {Name: indexID, Unique: true, Indexer: textIndex{func(o any) string { return o.(resource.Resource).Base().ID }}},
			indexName: {Name: indexName, Indexer: textIndex{func(o any) string { return o.(resource.Resource).Base().Name }}},
			indexRefs: {Name: indexRefs, AllowMissing: true, Indexer: refsIndex{}},
			// With the id, so that those of one owner come in its order.
			indexOwner: {Name: indexOwner, Unique: true, Indexer: textIndex{func(o any) string {
				b := o.(resource.Resource).Base()
				return ownerKey(b.Owner) + b.ID
			}}},
		}}
	}
	return s
}

// statusRow is what a host reported of an item.
type statusRow struct {
	host   string
	ref    desired.Ref
	status desired.Status
}

// hostRow is what is known of a host. The row of the host "" holds the sequence up to which everything was published.
type hostRow struct {
	host  string
	seen  resource.HostObservation
	gen   uint64
	items map[desired.Ref]resource.PublishedItem
	seq   uint64
}

func observedSchema() *memdb.DBSchema {
	return &memdb.DBSchema{Tables: map[string]*memdb.TableSchema{
		tableStatus: {Name: tableStatus, Indexes: map[string]*memdb.IndexSchema{
			indexID: {Name: indexID, Unique: true, Indexer: textIndex{func(o any) string {
				r := o.(*statusRow)
				return statusKey(r.host, r.ref)
			}}},
			indexDrifted: {Name: indexDrifted, Unique: true, AllowMissing: true, Indexer: driftedIndex{}},
		}},
		tableHosts: {Name: tableHosts, Indexes: map[string]*memdb.IndexSchema{
			indexID: {Name: indexID, Unique: true, Indexer: textIndex{func(o any) string { return o.(*hostRow).host }}},
		}},
	}}
}

// ownerKey begins the keys of what an account owns.
func ownerKey(account string) string { return account + "/" }

// statusKey is unambiguous because hosts and kinds are tokens of subjects.
func statusKey(host string, ref desired.Ref) string {
	return host + "." + string(ref.Kind) + "." + ref.ID
}

// textIndex indexes one text. Keys end in a zero byte, so that none is the prefix of another; none of the texts holds one.
type textIndex struct{ text func(any) string }

func indexKey(s string) []byte {
	b := make([]byte, len(s)+1)
	copy(b, s)
	return b
}

// FromArgs implements memdb.Indexer.
func (textIndex) FromArgs(args ...any) ([]byte, error) { return textArg(args) }

// PrefixFromArgs implements memdb.PrefixIndexer.
func (textIndex) PrefixFromArgs(args ...any) ([]byte, error) {
	b, err := textArg(args)
	if err != nil {
		return nil, err
	}
	return b[:len(b)-1], nil
}

// FromObject implements memdb.SingleIndexer.
func (x textIndex) FromObject(o any) (bool, []byte, error) { return true, indexKey(x.text(o)), nil }

// driftedIndex has the items that others have changed, of which there are few.
type driftedIndex struct{ textIndex }

// FromObject implements memdb.SingleIndexer.
func (driftedIndex) FromObject(o any) (bool, []byte, error) {
	r := o.(*statusRow)
	if !resource.HasDrifted(r.status) {
		return false, nil, nil
	}
	return true, indexKey(statusKey(r.host, r.ref)), nil
}

// refsIndex indexes a resource by what it names.
type refsIndex struct{}

// FromArgs implements memdb.Indexer.
func (refsIndex) FromArgs(args ...any) ([]byte, error) { return textArg(args) }

// FromObject implements memdb.MultiIndexer.
func (refsIndex) FromObject(o any) (bool, [][]byte, error) {
	refs := o.(resource.Resource).Refs()
	if len(refs) == 0 {
		return false, nil, nil
	}
	keys := make([][]byte, 0, len(refs))
	for i, r := range refs {
		if slices.ContainsFunc(refs[:i], func(o resource.Ref) bool { return o.Kind == r.Kind && o.ID == r.ID }) {
			continue
		}
		keys = append(keys, indexKey(refKey(r.Kind, r.ID)))
	}
	return true, keys, nil
}

func refKey(kind resource.Kind, id string) string { return string(kind) + "/" + id }

func textArg(args []any) ([]byte, error) {
	if len(args) != 1 {
		return nil, fmt.Errorf("look up index: %d arguments instead of one", len(args))
	}
	s, ok := args[0].(string)
	if !ok {
		return nil, fmt.Errorf("look up index: the argument is a %T, not a string", args[0])
	}
	return indexKey(s), nil
}
