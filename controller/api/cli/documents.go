package cli

import (
	"bytes"
	"encoding/json"
	"fmt"
	"slices"
	"strings"

	"shoal/controller/plan"
)

// printDocuments shows what would change on hosts: what happens to guests and data first, then the items.
func printDocuments(b *strings.Builder, raw json.RawMessage) error {
	var hosts []plan.HostDiff
	if len(raw) > 0 {
		if err := json.Unmarshal(raw, &hosts); err != nil {
			return fmt.Errorf("read documents: %w", err)
		}
	}
	if len(hosts) == 0 {
		b.WriteString("no host's document would change\n")
		return nil
	}
	for _, h := range hosts {
		fmt.Fprintf(b, "host %s:\n", h.Host)
		for _, effect := range []struct {
			what  string
			names []string
		}{{"starts VM", h.Starts}, {"stops VM", h.Stops}, {"restarts VM", h.Restarts}, {"ERASES volume", h.Erases}} {
			for _, n := range effect.names {
				fmt.Fprintf(b, "  %s %s\n", effect.what, n)
			}
		}
		for _, it := range h.Items {
			sign := map[plan.Change]string{plan.ItemAdded: "+", plan.ItemChanged: "~", plan.ItemRemoved: "-"}[it.Change]
			fmt.Fprintf(b, "  %s %s\n", sign, it.Ref)
			if it.Change == plan.ItemChanged {
				for _, line := range changedFields(it.Old, it.New) {
					fmt.Fprintf(b, "      %s\n", line)
				}
			}
		}
	}
	return nil
}

// changedFields lists the fields of two specs that differ, in the order of the new one's names.
func changedFields(old, now json.RawMessage) []string {
	var a, b map[string]json.RawMessage
	if json.Unmarshal(old, &a) != nil || json.Unmarshal(now, &b) != nil {
		return nil
	}
	var out []string
	for _, name := range sortedKeys(a, b) {
		if !bytes.Equal(a[name], b[name]) {
			out = append(out, fmt.Sprintf("%s: %s -> %s", name, short(a[name]), short(b[name])))
		}
	}
	return out
}

func short(raw json.RawMessage) string {
	if raw == nil {
		return "none"
	}
	if len(raw) > 120 {
		return string(raw[:117]) + "..."
	}
	return string(raw)
}

func sortedKeys(maps ...map[string]json.RawMessage) []string {
	var out []string
	for _, m := range maps {
		for k := range m {
			out = append(out, k)
		}
	}
	slices.Sort(out)
	return slices.Compact(out)
}
