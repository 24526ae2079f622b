package api

import (
	"encoding/json"
	"reflect"

	"shoal/controller/history"
	"shoal/controller/plan"
	"shoal/controller/resource"
	"shoal/desired"
)

// keptReply is the reply to a write as the journal keeps it, beside what was changed: of a resource it has where that is found.
type keptReply struct {
	Task      string         `json:"task,omitempty"`
	Tasks     []string       `json:"tasks,omitempty"`
	Resource  *keptRef       `json:"resource,omitempty"`
	Resources []keptRef      `json:"resources,omitempty"`
	Deleted   []plan.Deleted `json:"deleted,omitempty"`
}

type keptRef struct {
	Kind resource.Kind `json:"kind"`
	ID   string        `json:"id"`
}

// answered has the journal keep what the caller of a write is told.
func answered(tx resource.Tx, out Outcome, tasks []string) {
	k := keptReply{Deleted: out.Deleted}
	if len(tasks) > 0 {
		k.Task = tasks[0]
	}
	if len(tasks) > 1 {
		k.Tasks = tasks
	}
	for i, r := range out.Resources {
		ref := keptRef{r.Kind(), r.Base().ID}
		if i == 0 {
			k.Resource = &ref
		}
		if len(out.Resources) > 1 {
			k.Resources = append(k.Resources, ref)
		}
	}
	if b, err := json.Marshal(k); err == nil {
		tx.Answer(history.Bounded(b))
	}
}

// kept is an answer without its secrets: the fields that are tagged so. What comes from resources has none, see access.View.
func kept(answer any) json.RawMessage {
	v := reflect.ValueOf(answer)
	for v.Kind() == reflect.Pointer && !v.IsNil() {
		v = v.Elem()
	}
	if v.Kind() == reflect.Struct {
		c := reflect.New(v.Type()).Elem()
		c.Set(v)
		for _, f := range reflect.VisibleFields(v.Type()) {
			if f.Tag.Get("secret") == "true" && f.IsExported() && f.Type.Kind() == reflect.String && c.FieldByIndex(f.Index).Len() > 0 {
				c.FieldByIndex(f.Index).SetString(masked)
			}
		}
		answer = c.Interface()
	}
	b, err := desired.Canonical(answer)
	if err != nil {
		return nil
	}
	return b
}
