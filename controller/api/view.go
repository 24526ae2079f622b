package api

import (
	"encoding/json"
	"fmt"

	"shoal/controller/resource"
)

// View is a resource as clients see it: its fields, its status as it stands now, and the names of what it refers to.
func view(env *Env, r resource.Reader, res resource.Resource) (json.RawMessage, error) {
	raw, err := json.Marshal(res)
	if err != nil {
		return nil, fmt.Errorf("encode %s %s: %w", res.Kind(), res.Base().ID, err)
	}
	extra := struct {
		Status any            `json:"status,omitempty"`
		Names  map[string]any `json:"names,omitempty"`
	}{Status: status(env, r, res), Names: names(r, res)}
	more, err := json.Marshal(extra)
	if err != nil {
		return nil, fmt.Errorf("encode status of %s %s: %w", res.Kind(), res.Base().ID, err)
	}
	if len(more) > 2 {
		raw = append(raw[:len(raw)-1], ',')
		raw = append(raw, more[1:]...)
	}
	return raw, nil
}

// names has, by field, the names of the resources that one refers to; a field with several has a list.
func names(r resource.Reader, res resource.Resource) map[string]any {
	out := map[string]any{}
	lists := map[string]bool{"cluster_ids": true, "secgroup_ids": true, "clusters": true, "group_ids": true, "policy_ids": true}
	for _, ref := range res.Refs() {
		name := ref.ID
		if target := r.Get(ref.Kind, ref.ID); target != nil {
			name = target.Base().Name
		}
		if !lists[ref.Field] {
			out[ref.Field] = name
			continue
		}
		list, _ := out[ref.Field].([]string)
		out[ref.Field] = append(list, name)
	}
	if t, ok := res.(*resource.Task); ok {
		out["caller"] = callerName(r, t.Caller)
		out["resource_id"] = t.ResourceID
		if about := r.Get(t.ResourceKind, t.ResourceID); about != nil {
			out["resource_id"] = about.Base().Name
		}
	}
	return out
}

// callerName is what people know a caller by.
func callerName(r resource.Reader, id string) string {
	for _, kind := range []resource.Kind{resource.KindUser, resource.KindAccount} {
		if res := r.Get(kind, id); res != nil {
			return res.Base().Name
		}
	}
	return id
}

// status is the derived status, with what only this process knows.
func status(env *Env, r resource.Reader, res resource.Resource) any {
	s := resource.Derive(r, res)
	if env == nil || env.ImageProgress == nil {
		return s
	}
	switch x := res.(type) {
	case *resource.Image:
		if percent, ok := env.ImageProgress(x.ID); ok {
			if is, fits := s.(resource.ImageStatus); fits {
				return struct {
					resource.ImageStatus
					Progress int `json:"progress"`
				}{is, percent}
			}
		}
	case *resource.Task:
		c, fits := s.(resource.Convergence)
		if !fits || x.ResourceKind != resource.KindImage || c.Done || c.Failed {
			return s
		}
		if percent, ok := env.ImageProgress(x.ResourceID); ok {
			c.Percent = min(percent, 99)
			c.Waiting = []resource.ItemState{{Why: "the controller is downloading it", Progress: percent}}
			return c
		}
	}
	return s
}
