package linux

import (
	"fmt"
	"slices"
	"strings"
)

// Result is how a check ended.
type Result string

// The results.
const (
	OK     Result = "ok"
	Note   Result = "note" // it works; one may want to know
	Failed Result = "FAILED"
)

// Check is something about a machine that matters to a host.
type Check struct {
	// Name is what was looked at, Found what it is like.
	Name   string
	Result Result
	Found  string
	// Why it matters and what to do about it, where that is not OK.
	Why, Remedy string
}

func ok(name, format string, args ...any) Check {
	return Check{Name: name, Result: OK, Found: fmt.Sprintf(format, args...)}
}

func note(name, found, why, remedy string) Check {
	return Check{Name: name, Result: Note, Found: found, Why: why, Remedy: remedy}
}

func failed(name, found, why, remedy string) Check {
	return Check{Name: name, Result: Failed, Found: found, Why: why, Remedy: remedy}
}

// Report is what Preflight found.
type Report struct {
	Checks []Check
	// missing are the packages that are to be installed.
	missing []string
}

// Ready reports whether nothing stands in the way.
func (r Report) Ready() bool {
	return !slices.ContainsFunc(r.Checks, func(c Check) bool { return c.Result == Failed })
}

// Failures counts what stands in the way.
func (r Report) Failures() int {
	n := 0
	for _, c := range r.Checks {
		if c.Result == Failed {
			n++
		}
	}
	return n
}

// Text is the report for people: a line for each check, and below those that are not ok why that matters and what to do.
func (r Report) Text() string {
	var b strings.Builder
	for _, c := range r.Checks {
		fmt.Fprintf(&b, "%-6s  %-11s %s\n", c.Result, c.Name, c.Found)
		if c.Why != "" {
			fmt.Fprintf(&b, "%20swhy: %s\n", "", c.Why)
		}
		if c.Remedy != "" {
			fmt.Fprintf(&b, "%20sremedy: %s\n", "", c.Remedy)
		}
	}
	return b.String()
}
