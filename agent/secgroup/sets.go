package secgroup

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"

	"shoal/agent/engine"
	"shoal/agent/host"
	"shoal/desired"
)

// Sets is the kind addrset.
type Sets struct{ t *Table }

// Set is what is there of a group's two ipsets.
type Set struct {
	Name string
	// Addrs are the members of both families, sorted.
	Addrs []netip.Addr
	// V4 and V6 are the two ipsets.
	V4, V6 Header
}

// Header is what an ipset is, without its members.
type Header struct {
	Exists  bool
	Type    string
	Family  string
	MaxElem int
	Entries int
	// Uses counts the rules that match it.
	Uses int
}

func (s Set) complete() bool { return s.V4.Exists && s.V6.Exists }

// setChange is a change of a group's sets that waits for Flush.
type setChange struct {
	id     string
	text   string
	result Set
}

const (
	// minElem is the least that a set of ours may hold; it is ipset's default.
	minElem = 65536
	// rebuildAbove is the number of changes from which on a set is built anew beside the old one and swapped in, so
	// that packets never meet half of a large change.
	rebuildAbove = 1000
)

// setName is the ipset's name in a family.
func setName(name string, v4 bool) string {
	if v4 {
		return name + "-4"
	}
	return name + "-6"
}

// ParseSets reads the output of "ipset save": the sets with one of the names, by name, with members. Sets of other names are skipped.
func ParseSets(text []byte, ours func(string) bool) (map[string]Header, map[string][]netip.Addr, error) {
	heads, members := map[string]Header{}, map[string][]netip.Addr{}
	s := bufio.NewScanner(bytes.NewReader(text))
	s.Buffer(nil, 1<<20)
	last, lastOurs := "", false
	for s.Scan() {
		line := s.Text()
		verb, rest, _ := strings.Cut(line, " ")
		name, rest, _ := strings.Cut(rest, " ")
		if name != last {
			last, lastOurs = name, ours(name)
		}
		if !lastOurs {
			continue
		}
		switch verb {
		case "create":
			kind, options, _ := strings.Cut(rest, " ")
			h := Header{Exists: true, Type: kind}
			if err := h.options(options); err != nil {
				return nil, nil, fmt.Errorf("parse ipset %s: %w", name, err)
			}
			heads[name] = h
		case "add":
			if heads[name].Type != "hash:ip" {
				continue // not of our making: told by its type
			}
			word, _, _ := strings.Cut(rest, " ")
			addr, err := netip.ParseAddr(word)
			if err != nil {
				return nil, nil, fmt.Errorf("parse ipset %s: member %q: %w", name, word, err)
			}
			members[name] = append(members[name], addr)
		}
	}
	for name, h := range heads {
		h.Entries = len(members[name])
		heads[name] = h
	}
	return heads, members, s.Err()
}

// options reads "family inet hashsize 1024 maxelem 65536 ...".
func (h *Header) options(s string) error {
	words := strings.Fields(s)
	for i := 0; i+1 < len(words); i++ {
		switch words[i] {
		case "family":
			h.Family = words[i+1]
		case "maxelem":
			n, err := strconv.Atoi(words[i+1])
			if err != nil {
				return fmt.Errorf("maxelem: %w", err)
			}
			h.MaxElem = n
		}
	}
	return nil
}

// ParseHeaders reads the output of "ipset list -t".
func ParseHeaders(text []byte) (map[string]Header, error) {
	found := map[string]Header{}
	name := ""
	s := bufio.NewScanner(bytes.NewReader(text))
	s.Buffer(nil, 1<<20)
	for s.Scan() {
		key, value, ok := strings.Cut(s.Text(), ":")
		if !ok {
			continue
		}
		value = strings.TrimSpace(value)
		if key == "Name" {
			name = value
			found[name] = Header{Exists: true}
			continue
		}
		h, known := found[name]
		if !known {
			continue
		}
		var err error
		switch key {
		case "Type":
			h.Type = value
		case "Header":
			err = h.options(value)
		case "References":
			h.Uses, err = strconv.Atoi(value)
		case "Number of entries":
			h.Entries, err = strconv.Atoi(value)
		}
		if err != nil {
			return nil, fmt.Errorf("parse ipset %s: %w", name, err)
		}
		found[name] = h
	}
	return found, s.Err()
}

// headers lists all sets of the host without their members.
func (t *Table) headers(ctx context.Context) (map[string]Header, error) {
	out, err := t.run.Run(ctx, host.Command{Name: "ipset", Args: []string{"list", "-t"}})
	if err != nil {
		return nil, fmt.Errorf("list ipsets: %w", err)
	}
	return ParseHeaders(out)
}

// Observe implements engine.Kind. It reads every member.
func (k *Sets) Observe(ctx context.Context) (map[string]Set, error) {
	t := k.t
	if err := t.turn.Take(ctx); err != nil {
		return nil, err
	}
	defer t.turn.Give()
	if len(t.owned.Sets) == 0 {
		return map[string]Set{}, nil
	}
	if err := t.readSets(ctx); err != nil {
		return nil, err
	}
	found := map[string]Set{}
	for name, id := range t.owned.Sets {
		s, ok := t.sets[name]
		if !ok {
			continue
		}
		if _, ok := found[id]; ok {
			id = "set:" + name // an earlier name of the same group that a crash left
		}
		found[id] = s
	}
	return found, nil
}

// readSets reads all sets of ours.
func (t *Table) readSets(ctx context.Context) error {
	names := map[string]bool{}
	for name := range t.owned.Sets {
		names[setName(name, true)], names[setName(name, false)] = true, true
	}
	out, err := t.run.Run(ctx, host.Command{Name: "ipset", Args: []string{"save"}})
	if err != nil {
		return fmt.Errorf("read ipsets: %w", err)
	}
	heads, members, err := ParseSets(out, func(s string) bool { return names[s] })
	if err != nil {
		return err
	}
	uses, err := t.headers(ctx)
	if err != nil {
		return err
	}
	t.sets = map[string]Set{}
	for name := range t.owned.Sets {
		n4, n6 := setName(name, true), setName(name, false)
		s := Set{Name: name, V4: heads[n4], V6: heads[n6], Addrs: slices.Concat(members[n4], members[n6])}
		if !s.V4.Exists && !s.V6.Exists {
			continue
		}
		s.V4.Uses, s.V6.Uses = uses[n4].Uses, uses[n6].Uses
		slices.SortFunc(s.Addrs, netip.Addr.Compare)
		t.sets[name] = s
	}
	return nil
}

// ObserveOne implements engine.OneObserver: it reads the sets' headers, and the members only where their number is not the one that was
// last read or written. A member exchanged for another by hand is found by Observe.
func (k *Sets) ObserveOne(ctx context.Context, id string) (*Set, error) {
	t := k.t
	if err := t.turn.Take(ctx); err != nil {
		return nil, err
	}
	defer t.turn.Give()
	for name, owner := range t.owned.Sets {
		if owner != id {
			continue
		}
		heads, err := t.headers(ctx)
		if err != nil {
			return nil, err
		}
		if s, ok := t.sets[name]; !ok || !s.sameHeads(heads) {
			if err := t.readSets(ctx); err != nil {
				return nil, err
			}
		}
		s, ok := t.sets[name]
		if !ok {
			return nil, nil
		}
		s.V4.Uses, s.V6.Uses = heads[setName(name, true)].Uses, heads[setName(name, false)].Uses
		return &s, nil
	}
	return nil, nil
}

func (s Set) sameHeads(heads map[string]Header) bool {
	same := func(a, b Header) bool { return a.Exists == b.Exists && a.Type == b.Type && a.Entries == b.Entries }
	return same(s.V4, heads[setName(s.Name, true)]) && same(s.V6, heads[setName(s.Name, false)])
}

// Diff implements engine.Kind.
func (k *Sets) Diff(_ string, w desired.AddrSet, have Set) string {
	switch {
	case have.Name != w.Name:
		return "sets are called " + have.Name
	case !have.V4.Exists:
		return "ipset " + setName(w.Name, true) + " is missing"
	case !have.V6.Exists:
		return "ipset " + setName(w.Name, false) + " is missing"
	}
	if d := wrongKind(have); d != "" {
		return d
	}
	add, del := delta(have.Addrs, sorted(w.Addrs))
	if len(add)+len(del) == 0 {
		return ""
	}
	return fmt.Sprintf("%d members missing, %d too many", len(add), len(del))
}

func wrongKind(s Set) string {
	for _, f := range []struct {
		h      Header
		v4     bool
		family string
	}{{s.V4, true, "inet"}, {s.V6, false, "inet6"}} {
		if f.h.Exists && (f.h.Type != "hash:ip" || f.h.Family != f.family) {
			return fmt.Sprintf("ipset %s is of type %s family %s and not hash:ip family %s", setName(s.Name, f.v4), f.h.Type, f.h.Family, f.family)
		}
	}
	return ""
}

// sorted is what documents are already.
func sorted(addrs []netip.Addr) []netip.Addr {
	for i := 1; i < len(addrs); i++ {
		if addrs[i-1].Compare(addrs[i]) >= 0 {
			addrs = slices.Clone(addrs)
			slices.SortFunc(addrs, netip.Addr.Compare)
			return slices.Compact(addrs)
		}
	}
	return addrs
}

// delta compares sorted addresses.
func delta(have, want []netip.Addr) (add, del []netip.Addr) {
	for len(have) > 0 || len(want) > 0 {
		var c int
		switch {
		case len(have) == 0:
			c = 1
		case len(want) == 0:
			c = -1
		default:
			c = have[0].Compare(want[0])
		}
		switch {
		case c < 0:
			del, have = append(del, have[0]), have[1:]
		case c > 0:
			add, want = append(add, want[0]), want[1:]
		default:
			have, want = have[1:], want[1:]
		}
	}
	return add, del
}

// Ensure implements engine.Kind. It collects; Flush applies.
func (k *Sets) Ensure(ctx context.Context, id string, w desired.AddrSet, have *Set) (Set, error) {
	t := k.t
	if err := t.turn.Take(ctx); err != nil {
		return Set{}, err
	}
	defer t.turn.Give()
	for i, a := range w.Addrs {
		if a.IsUnspecified() || a.Is4In6() || a.Zone() != "" {
			return Set{}, engine.Final(engine.Fault(desired.CodeInvalid, "", fmt.Errorf("fill set %s: addrs[%d]: %s can't be a member", w.Name, i, a)))
		}
	}
	now := Set{Name: w.Name}
	if have != nil && have.Name == w.Name {
		now = *have
	}
	if t.owned.Sets[w.Name] == "" {
		// Not in our notes: they may be lost, or the set is someone else's. Ours are used as they are.
		heads, err := t.headers(ctx)
		if err != nil {
			return Set{}, err
		}
		now.V4, now.V6 = heads[setName(w.Name, true)], heads[setName(w.Name, false)]
		if d := wrongKind(now); d != "" {
			return Set{}, engine.Fault(desired.CodeConflict, "rename or destroy the set on the host", fmt.Errorf("fill set %s: %s", w.Name, d))
		}
	}
	c := setChange{id: id, result: Set{Name: w.Name, Addrs: sorted(w.Addrs)}}
	var b strings.Builder
	fill(&b, setName(w.Name, true), "inet", now.V4, family(now.Addrs, true), family(c.result.Addrs, true), &c.result.V4)
	fill(&b, setName(w.Name, false), "inet6", now.V6, family(now.Addrs, false), family(c.result.Addrs, false), &c.result.V6)
	c.text = b.String()
	t.setEnsure[w.Name] = c
	if have != nil && have.Name != w.Name {
		t.setRemove[have.Name] = *have
	}
	delete(t.setRemove, w.Name)
	return c.result, nil
}

// family cuts one family out of sorted addresses: IPv4 sorts first.
func family(addrs []netip.Addr, v4 bool) []netip.Addr {
	i, _ := slices.BinarySearchFunc(addrs, 0, func(a netip.Addr, _ int) int {
		if a.Is4() {
			return -1
		}
		return 1
	})
	if v4 {
		return addrs[:i]
	}
	return addrs[i:]
}

// fill writes the lines that make one ipset hold what it should.
func fill(b *strings.Builder, name, family string, now Header, have, want []netip.Addr, result *Header) {
	*result = Header{Exists: true, Type: "hash:ip", Family: family, MaxElem: max(now.MaxElem, minElem), Entries: len(want), Uses: now.Uses}
	for result.MaxElem < len(want) {
		result.MaxElem *= 2
	}
	line := func(verb, name string, addr netip.Addr) {
		b.WriteString(verb)
		b.WriteByte(' ')
		b.WriteString(name)
		b.WriteByte(' ')
		b.WriteString(addr.String())
		b.WriteByte('\n')
	}
	create := func(name string) {
		fmt.Fprintf(b, "create %s hash:ip family %s maxelem %d\n", name, family, result.MaxElem)
	}
	right := now.Exists && now.Type == "hash:ip" && now.Family == family
	add, del := delta(have, want)
	switch {
	case !now.Exists:
		create(name)
		for _, a := range want {
			line("add", name, a)
		}
	case !right:
		// Someone put a set of another kind in our set's place. It can't be swapped, and can be removed only if unused.
		fmt.Fprintf(b, "destroy %s\n", name)
		create(name)
		for _, a := range want {
			line("add", name, a)
		}
	case len(add)+len(del) > rebuildAbove || now.MaxElem != result.MaxElem || now.Entries != len(have):
		next := name + "t"
		create(next)
		fmt.Fprintf(b, "flush %s\n", next)
		for _, a := range want {
			line("add", next, a)
		}
		fmt.Fprintf(b, "swap %s %s\ndestroy %s\n", next, name, next)
	default:
		for _, a := range add {
			line("add", name, a)
		}
		for _, a := range del {
			line("del", name, a)
		}
	}
}

// Remove implements engine.Kind. It collects; Flush applies. A set that rules still match stays: they go first.
func (k *Sets) Remove(ctx context.Context, id string, have Set) error {
	t := k.t
	if err := t.turn.Take(ctx); err != nil {
		return err
	}
	defer t.turn.Give()
	if have.V4.Uses+have.V6.Uses > 0 {
		return engine.After(500*time.Millisecond, engine.Fault(desired.CodeInUse, "remove the rules that name the group",
			fmt.Errorf("destroy set %s of %s: rules still match it", have.Name, id)))
	}
	delete(t.setEnsure, have.Name)
	t.setRemove[have.Name] = have
	return nil
}

// Flush implements engine.Flusher: one "ipset restore" for everything.
func (k *Sets) Flush(ctx context.Context) error {
	t := k.t
	if err := t.turn.Take(ctx); err != nil {
		return err
	}
	defer t.turn.Give()
	if len(t.setEnsure) == 0 && len(t.setRemove) == 0 {
		return nil
	}
	ensure, remove := t.setEnsure, t.setRemove
	t.setEnsure, t.setRemove = map[string]setChange{}, map[string]Set{}
	if err := t.note(func(o *owned) {
		for name, c := range ensure {
			o.Sets[name] = c.id
		}
	}); err != nil {
		return err
	}
	var b bytes.Buffer
	for _, name := range slices.Sorted(maps.Keys(ensure)) {
		b.WriteString(ensure[name].text)
	}
	for _, name := range slices.Sorted(maps.Keys(remove)) {
		if remove[name].V4.Exists {
			fmt.Fprintf(&b, "destroy %s\n", setName(name, true))
		}
		if remove[name].V6.Exists {
			fmt.Fprintf(&b, "destroy %s\n", setName(name, false))
		}
	}
	if b.Len() > 0 {
		// -exist: a member that is there already is no error.
		if _, err := t.run.Run(ctx, host.Command{Name: "ipset", Args: []string{"restore", "-exist"}, Stdin: b.Bytes()}); err != nil {
			// It stops at the first line that does not work: what is there is not known any more.
			for name := range ensure {
				delete(t.sets, name)
			}
			for name := range remove {
				delete(t.sets, name)
			}
			return fmt.Errorf("change ipsets: %w", err)
		}
	}
	for name, c := range ensure {
		t.sets[name] = c.result
	}
	for name := range remove {
		delete(t.sets, name)
	}
	return t.note(func(o *owned) {
		for name := range remove {
			delete(o.Sets, name)
		}
	})
}

// Watch implements engine.Watcher: sets that lose or gain members, or go, are seen within 2 s.
func (k *Sets) Watch(ctx context.Context, changed func(string)) error {
	t := k.t
	timer := time.NewTicker(2 * time.Second)
	defer timer.Stop()
	told := map[string]string{}
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-timer.C:
		}
		var ids []string
		if err := t.turn.Take(ctx); err != nil {
			return err
		}
		if len(t.sets) > 0 {
			heads, err := t.headers(ctx)
			for name, s := range t.sets {
				if err != nil {
					break // not known: the sweep will tell
				}
				seen := ""
				if !s.sameHeads(heads) {
					seen = fmt.Sprint(heads[setName(name, true)], heads[setName(name, false)])
				}
				if seen != "" && seen != told[name] {
					ids = append(ids, t.owned.Sets[name])
				}
				told[name] = seen
			}
		}
		t.turn.Give()
		for _, id := range ids {
			changed(id)
		}
	}
}
