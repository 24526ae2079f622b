package api

import (
	"encoding/json"
	"fmt"
	"slices"

	"shoal/controller/resource"
	"shoal/controller/store/query"
)

// maxPage is how many bytes of resources one page of a list holds, which leaves room for the rest of the answer.
const maxPage = maxAnswer - 64<<10

func list(env *Env, r resource.Reader, kind resource.Kind, p *listParams) (any, error) {
	if p.Limit < 0 {
		return nil, resource.Invalid("limit", "%d is negative", p.Limit)
	}
	if p.Offset < 0 {
		return nil, resource.Invalid("offset", "%d is negative", p.Offset)
	}
	spec := query.Spec{Conditions: slices.Clone(p.Where), Sort: p.Sort, Fields: p.Fields, Limit: p.Limit, Offset: p.Offset, Count: p.Count}
	for i, tag := range p.Selector {
		if tag == "" {
			return nil, resource.Invalid(fmt.Sprintf("selector[%d]", i), "must not be empty")
		}
		spec.Conditions = append(spec.Conditions, "tags="+tag)
	}
	q, err := query.Parse(kind, spec)
	if err != nil {
		return nil, err
	}
	result := q.Run(r)
	page := Page{Items: []json.RawMessage{}, Total: result.Total, Seq: r.Seq()}
	if p.Count {
		return page, nil
	}
	size := 0
	for i, row := range result.Rows {
		var raw json.RawMessage
		if len(p.Fields) > 0 {
			raw, err = json.Marshal(row)
		} else {
			raw, err = view(env, r, row.Resource)
		}
		if err != nil {
			return nil, fmt.Errorf("encode %s %s: %w", kind, row.Resource.Base().ID, err)
		}
		if size += len(raw) + 1; size > maxPage && i > 0 {
			page.Next = p.Offset + i
			break
		}
		page.Items = append(page.Items, raw)
	}
	return page, nil
}
