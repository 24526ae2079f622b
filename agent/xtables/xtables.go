// Package xtables reads and changes the filter tables of iptables, ip6tables and ebtables for the kinds that own chains
// there. It is their backend, not a kind.
//
// It guarantees that a change is one transaction of the tool's own restore program with --noflush, so that a packet sees
// all of it or nothing of it; that it names only chains it was given and hooks to them; and that a rule's normal form is the same
// whatever order a version of the tool prints its matches in. It works with the nft and the legacy variants alike and
// never mixes them: it runs the plain commands, which are what the host's administrator chose.
//
// What the chains hold, and when to write them, is left to the kinds.
package xtables

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"slices"
	"strings"

	"shoal/agent/host"
)

// Tool is a packet filter.
type Tool string

// The tools. Their save and restore programs carry the suffixes "-save" and "-restore".
const (
	IPv4     Tool = "iptables"
	IPv6     Tool = "ip6tables"
	Ethernet Tool = "ebtables"
)

// OwnPrefix starts the names of all chains that Shoal hooks into a built-in chain. Hooks go before everything else, and several of them
// do not fight for the first place: see Hooked.
const OwnPrefix = "SHOAL-"

// Table is the content of a filter table: rules in their normal form, by chain.
type Table map[string][]string

// Read gets the tool's filter table.
func Read(ctx context.Context, r host.Runner, tool Tool) (Table, error) {
	c := host.Command{Name: string(tool) + "-save", Args: []string{"-t", "filter"}}
	if tool == Ethernet {
		// ebtables-legacy-save knows no option; both print all tables.
		c.Args = nil
	}
	out, err := r.Run(ctx, c)
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", tool, err)
	}
	t, err := Parse(out)
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", tool, err)
	}
	return t, nil
}

// Parse reads the filter table out of what a save program printed. A table that was never used may be absent: it is empty.
func Parse(text []byte) (Table, error) {
	t := Table{}
	in := false
	s := bufio.NewScanner(bytes.NewReader(text))
	s.Buffer(nil, 1<<20)
	for n := 1; s.Scan(); n++ {
		line := strings.TrimSpace(s.Text())
		switch {
		case line == "" || line[0] == '#':
		case line[0] == '*':
			in = line == "*filter"
		case !in:
		case line == "COMMIT":
			in = false
		case line[0] == ':':
			name, _, ok := strings.Cut(line[1:], " ")
			if !ok || name == "" {
				return nil, fmt.Errorf("parse line %d: %q declares no chain", n, line)
			}
			if t[name] == nil {
				t[name] = []string{}
			}
		default:
			// With counters, a rule starts with "[packets:bytes] ".
			if line[0] == '[' {
				_, line, _ = strings.Cut(line, "] ")
			}
			rest, ok := strings.CutPrefix(line, "-A ")
			if !ok {
				return nil, fmt.Errorf("parse line %d: %q is not a rule", n, line)
			}
			name, rule, _ := strings.Cut(rest, " ")
			if name == "" {
				return nil, fmt.Errorf("parse line %d: %q names no chain", n, line)
			}
			t[name] = append(t[name], Normal(rule))
		}
	}
	return t, s.Err()
}

// Normal is a rule in a form that does not depend on the tool's version: options with their values in order of their
// names, without the "-m" that only loads a match, without quotes, with "!" before its option, MACs in lower case.
func Normal(rule string) string {
	words := split(rule)
	var options []string
	for i := 0; i < len(words); {
		not := ""
		if words[i] == "!" {
			not = "! "
			i++
		}
		if i == len(words) {
			break
		}
		name := words[i]
		i++
		var values []string
		for i < len(words) && !(strings.HasPrefix(words[i], "-") && len(words[i]) > 1) {
			if words[i] == "!" {
				// ebtables negates after the option, iptables before the next one.
				if i+1 < len(words) && strings.HasPrefix(words[i+1], "-") {
					break
				}
				not = "! "
				i++
				continue
			}
			values = append(values, words[i])
			i++
		}
		if name == "-m" || name == "--match" {
			continue
		}
		value := strings.Join(values, " ")
		switch name {
		case "--mac-source", "--arp-mac-src", "-s":
			value = strings.ToLower(value)
		case "--ctstate":
			states := strings.Split(value, ",")
			slices.Sort(states)
			value = strings.Join(states, ",")
		}
		options = append(options, strings.TrimRight(not+name+" "+value, " "))
	}
	slices.SortStableFunc(options, func(a, b string) int {
		return strings.Compare(strings.TrimPrefix(a, "! "), strings.TrimPrefix(b, "! "))
	})
	return strings.Join(options, " ")
}

// split cuts a rule into words; double quotes hold one together, a backslash keeps the next byte.
func split(s string) []string {
	var words []string
	var w []byte
	quoted, some := false, false
	for i := 0; i < len(s); i++ {
		switch c := s[i]; {
		case c == '\\' && i+1 < len(s):
			i++
			w, some = append(w, s[i]), true
		case c == '"':
			quoted, some = !quoted, true
		case (c == ' ' || c == '\t') && !quoted:
			if some {
				words = append(words, string(w))
			}
			w, some = w[:0], false
		default:
			w, some = append(w, c), true
		}
	}
	if some {
		words = append(words, string(w))
	}
	return words
}

// Option is the value of an option in a rule's normal form, "" when it is not there or is negated.
func Option(normal, name string) string {
	rest := " " + normal
	for {
		i := strings.Index(rest, " "+name+" ")
		if i < 0 {
			return ""
		}
		negated := strings.HasSuffix(rest[:i], " !") || rest[:i] == "!"
		rest = rest[i+len(name)+2:]
		if negated {
			continue
		}
		value, _, _ := strings.Cut(rest, " ")
		return value
	}
}

// Hook is the rule in a built-in chain that leads into a chain of ours.
type Hook struct {
	Chain string // the built-in chain
	Rule  string // match and "-j SHOAL-..."
}

// Hooked reports whether a hook is in force: exactly once, and before every rule that is not a hook of Shoal's.
func (t Table) Hooked(h Hook) bool {
	normal := Normal(h.Rule)
	count := 0
	foreign := false
	for _, rule := range t[h.Chain] {
		switch {
		case rule == normal && foreign:
			return false
		case rule == normal:
			count++
		case !strings.HasPrefix(Option(rule, "-j"), OwnPrefix):
			foreign = true
		}
	}
	return count == 1
}

// Script is a transaction on one table.
type Script struct {
	table   Table
	chains  []string
	content bytes.Buffer
	hooks   bytes.Buffer
	dropped []string
	tool    Tool
	// normal holds the rules of chains in normal form, as far as the caller had them.
	normal map[string][]string
}

// NewScript starts a transaction on a table that was read just now.
func NewScript(tool Tool, now Table) *Script { return &Script{tool: tool, table: now, normal: Table{}} }

// Chain makes a chain hold exactly these rules.
func (s *Script) Chain(name string, rules []string) {
	s.chains = append(s.chains, name)
	for _, r := range rules {
		s.content.WriteString("-A ")
		s.content.WriteString(name)
		s.content.WriteByte(' ')
		s.content.WriteString(r)
		s.content.WriteByte('\n')
	}
}

// ChainAs is Chain for who has the rules' normal forms already, in the same order: a large transaction spends most of its time in Normal.
func (s *Script) ChainAs(name string, rules, normal []string) {
	s.Chain(name, rules)
	s.normal[name] = normal
}

// Drop removes a chain that nothing leads to after this transaction. An absent chain is skipped.
func (s *Script) Drop(name string) {
	if _, ok := s.table[name]; ok && !slices.Contains(s.dropped, name) {
		s.dropped = append(s.dropped, name)
	}
}

// Hook puts a hook in force where it is not.
func (s *Script) Hook(h Hook) {
	if s.table.Hooked(h) {
		return
	}
	s.Unhook(h)
	fmt.Fprintf(&s.hooks, "-I %s 1 %s\n", h.Chain, h.Rule)
}

// Unhook takes every copy of a hook away.
func (s *Script) Unhook(h Hook) {
	normal := Normal(h.Rule)
	for _, rule := range s.table[h.Chain] {
		if rule == normal {
			fmt.Fprintf(&s.hooks, "-D %s %s\n", h.Chain, h.Rule)
		}
	}
}

// Empty says that there is nothing to do.
func (s *Script) Empty() bool { return len(s.chains) == 0 && s.hooks.Len() == 0 && len(s.dropped) == 0 }

// Text is the restore program's input.
func (s *Script) Text() []byte {
	var b bytes.Buffer
	b.WriteString("*filter\n")
	// A declaration makes a chain, or empties it.
	for _, name := range s.chains {
		if s.tool == Ethernet {
			fmt.Fprintf(&b, ":%s RETURN\n", name)
		} else {
			fmt.Fprintf(&b, ":%s - [0:0]\n", name)
		}
	}
	if s.tool == Ethernet {
		for _, name := range s.chains {
			// Only the nft variant empties by declaring.
			if _, ok := s.table[name]; ok {
				fmt.Fprintf(&b, "-F %s\n", name)
			}
		}
	}
	b.Write(s.content.Bytes())
	b.Write(s.hooks.Bytes())
	// Chains that are dropped may lead to each other: empty them all first.
	for _, name := range s.dropped {
		fmt.Fprintf(&b, "-F %s\n", name)
	}
	for _, name := range s.dropped {
		fmt.Fprintf(&b, "-X %s\n", name)
	}
	if s.tool != Ethernet {
		b.WriteString("COMMIT\n")
	}
	return b.Bytes()
}

// Apply runs the transaction; nothing happens when it is empty.
func (s *Script) Apply(ctx context.Context, r host.Runner) error {
	if s.Empty() {
		return nil
	}
	args := []string{"--noflush"}
	if s.tool != Ethernet {
		// Legacy variants hold a lock; without --wait they would give up when someone else works on the table.
		args = append(args, "--wait", "10")
	}
	_, err := r.Run(ctx, host.Command{Name: string(s.tool) + "-restore", Args: args, Stdin: s.Text()})
	if err != nil {
		return fmt.Errorf("change %s: %w", s.tool, err)
	}
	return nil
}

// Result is the table after the transaction, as far as chains of ours go.
func (s *Script) Result() Table {
	t := Table{}
	for name, rules := range s.table {
		t[name] = slices.Clone(rules)
	}
	for _, name := range s.chains {
		t[name] = append([]string{}, s.normal[name]...)
	}
	lines := append(strings.Split(s.content.String(), "\n"), strings.Split(s.hooks.String(), "\n")...)
	for _, line := range lines {
		verb, rest, _ := strings.Cut(line, " ")
		name, rule, _ := strings.Cut(rest, " ")
		switch verb {
		case "-A":
			if _, ok := s.normal[name]; ok {
				continue
			}
			t[name] = append(t[name], Normal(rule))
		case "-I":
			t[name] = slices.Insert(t[name], 0, Normal(strings.TrimPrefix(rule, "1 ")))
		case "-D":
			if i := slices.Index(t[name], Normal(rule)); i >= 0 {
				t[name] = slices.Delete(t[name], i, i+1)
			}
		}
	}
	for _, name := range s.dropped {
		delete(t, name)
	}
	return t
}
