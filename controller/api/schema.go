package api

import (
	"encoding/json"

	"github.com/invopop/jsonschema"

	"shoal/controller/resource"
)

// schema is a JSON schema (draft 2020-12), as far as parameters need it.
type schema struct {
	Type        string             `json:"type,omitempty"`
	Description string             `json:"description,omitempty"`
	Format      string             `json:"format,omitempty"`
	Enum        []string           `json:"enum,omitempty"`
	Items       *schema            `json:"items,omitempty"`
	Properties  map[string]*schema `json:"properties,omitempty"`
	Required    []string           `json:"required,omitempty"`
	// Additional is false: unknown fields are refused.
	Additional *bool     `json:"additionalProperties,omitempty"`
	AnyOf      []*schema `json:"anyOf,omitempty"`
	// Ref is the kind of resource that a text names by id or unique name.
	Ref resource.Kind `json:"x-resource,omitempty"`
}

// OperationSchema describes an operation to programs.
type OperationSchema struct {
	Operation string          `json:"operation"`
	Class     Class           `json:"class"`
	Summary   string          `json:"summary"`
	Help      string          `json:"help"`
	Task      bool            `json:"task"`
	Params    *schema         `json:"params"`
	Result    json.RawMessage `json:"result"`
}

// Schema is the JSON schema of an operation's parameters and result, made from the same declaration as everything else.
func (o *Operation) Schema() OperationSchema {
	return OperationSchema{
		Operation: o.Name(), Class: o.Class, Summary: o.Summary, Help: o.Help, Task: o.Task,
		Params: objectSchema(append(append([]Param{}, o.Params...), o.commonParams()...)), Result: o.resultSchema(),
	}
}

func objectSchema(params []Param) *schema {
	no := false
	s := &schema{Type: "object", Properties: map[string]*schema{}, Additional: &no}
	for _, p := range params {
		s.Properties[p.Name] = p.schema()
		if p.Required {
			s.Required = append(s.Required, p.Name)
		}
	}
	return s
}

func (p Param) schema() *schema {
	one := &schema{Type: "string", Description: p.Help, Ref: p.Ref, Enum: p.Enum}
	switch {
	case len(p.Fields) > 0:
		one = objectSchema(p.Fields)
		one.Description = p.Help
	case p.Bool:
		one.Type = "boolean"
	case p.TypeName == "number":
		one.Type = "number"
	case p.TypeName == "size":
		one = &schema{Description: p.Help, AnyOf: []*schema{{Type: "integer", Description: "bytes"}, {Type: "string", Description: "with a unit, such as 10GiB"}}}
	case p.TypeName == "span":
		one = &schema{Description: p.Help, AnyOf: []*schema{{Type: "integer"}, {Type: "string", Description: "from-to"}}}
	case p.TypeName == "address":
		one.Format = "ipv4"
	}
	if !p.List {
		return one
	}
	description := one.Description
	one.Description = ""
	return &schema{Type: "array", Description: description, Items: one}
}

func (o *Operation) resultSchema() json.RawMessage {
	var v any
	switch o.Result {
	case ResultReply:
		v = Reply{}
	case ResultList:
		v = Page{}
	case ResultOne:
		if res := resource.New(o.Kind); res != nil {
			v = res
		} else {
			return json.RawMessage(`{"type":"object"}`)
		}
	}
	r := jsonschema.Reflector{Anonymous: true, ExpandedStruct: true, AllowAdditionalProperties: true}
	b, err := json.Marshal(r.Reflect(v))
	if err != nil {
		panic(err) // a schema always encodes; the registry's test makes every one
	}
	return b
}
