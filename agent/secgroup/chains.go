package secgroup

import (
	"context"
	"fmt"
	"maps"
	"reflect"
	"slices"
	"strings"
	"time"

	"shoal/agent/engine"
	"shoal/agent/xtables"
	"shoal/desired"
)

// Chains is the kind secgroup.
type Chains struct{ t *Table }

// Filter is what is there of one NIC's packet filter.
type Filter struct {
	// Base is the chains' name without the direction's suffix.
	Base string
	// Content is the NIC's chains, and in the chains that all NICs share the lines that lead to them. Rules are in normal form.
	Content content
	// Trouble says what is wrong with what all NICs share; empty for nothing.
	Trouble string
}

// nic is a NIC that is to be applied.
type nic struct {
	id      string
	spec    desired.SecGroup
	content content
	normal  content
	old     string // chains of an earlier name to be removed
}

// lines are a NIC's places in the shared chains, by tool and chain.
func lines(tap, base string, chains content) content {
	c := content{}
	for _, tool := range []xtables.Tool{xtables.IPv4, xtables.IPv6} {
		c.set(tool, chainEgress+bucketOf(tap), []string{egressLine(tap, base)})
		c.set(tool, chainIngress+bucketOf(tap), []string{ingressLine(tap, base)})
	}
	if _, ok := chains[xtables.Ethernet][base+suffixARP]; ok {
		c.set(xtables.Ethernet, chainARP, []string{arpLine(tap, base)})
	}
	return c
}

// expect is what Observe finds when a NIC is as it should be.
func expect(w desired.SecGroup, normal content) content {
	c := content{}
	for _, part := range []content{normal, lines(w.Tap, w.Chain, normal).normal()} {
		for tool, chains := range part {
			for chain, rules := range chains {
				c.set(tool, chain, rules)
			}
		}
	}
	return c
}

// expectation is what was last worked out for a NIC, for as long as it is wanted so.
type expectation struct {
	spec    desired.SecGroup
	content content
}

// expected is expect, kept: sweeps ask for the same again and again.
func (t *Table) expected(id string, w desired.SecGroup) content {
	t.expectMu.Lock()
	defer t.expectMu.Unlock()
	if e, ok := t.expects[id]; ok && reflect.DeepEqual(e.spec, w) {
		return e.content
	}
	c := expect(w, render(id, w).normal())
	t.expects[id] = expectation{w, c}
	return c
}

// Observe implements engine.Kind.
func (k *Chains) Observe(ctx context.Context) (map[string]Filter, error) {
	t := k.t
	if err := t.turn.Take(ctx); err != nil {
		return nil, err
	}
	defer t.turn.Give()
	tables, err := t.read(ctx)
	if err != nil {
		return nil, err
	}
	// Whose chains there are: by their comment, else by our notes.
	bases := maps.Clone(t.owned.Chains)
	for _, tool := range tools {
		for chain, rules := range tables[tool] {
			if base, ok := baseOf(chain); ok {
				if id := markOf(rules); id != "" {
					bases[base] = id
				}
			}
		}
	}
	found := map[string]Filter{}
	for base, id := range bases {
		f := Filter{Base: base, Content: content{}}
		some := false
		for _, tool := range tools {
			for _, suffix := range []string{suffixIngress, suffixEgress, suffixSource, suffixARP} {
				if rules, ok := tables[tool][base+suffix]; ok {
					f.Content.set(tool, base+suffix, rules)
					some = true
				}
			}
		}
		if !some {
			continue
		}
		if other, ok := found[id]; ok && other.Base < base {
			// A chain of an earlier name that a crash left: Remove it under a name of its own.
			id = "chain:" + base
		} else if ok {
			found["chain:"+other.Base] = other
		}
		found[id] = f
	}
	for _, tool := range tools {
		for chain, rules := range tables[tool] {
			if !shared(chain) {
				continue
			}
			for _, r := range rules {
				base, _ := baseOf(xtables.Option(r, "-j"))
				for _, f := range found {
					if f.Base == base {
						f.Content.set(tool, chain, append(f.Content[tool][chain], r))
					}
				}
			}
		}
	}
	if len(found) == 0 {
		return found, nil
	}
	trouble := t.trouble(tables)
	for id, f := range found {
		f.Trouble = trouble
		found[id] = f
	}
	return found, nil
}

// markOf is the item's id out of a chain's comment.
func markOf(rules []string) string {
	for _, r := range rules {
		if id, ok := strings.CutPrefix(xtables.Option(r, "--comment"), comment); ok && xtables.Option(r, "--ctstate") != "" {
			return id
		}
	}
	return ""
}

// shared says that a chain holds lines that lead to NICs' chains.
func shared(chain string) bool {
	return strings.HasPrefix(chain, chainEgress) || strings.HasPrefix(chain, chainIngress) || chain == chainARP
}

// keysOf are the buckets in use.
func keysOf(table xtables.Table) []string {
	var keys []string
	for chain := range table {
		if k, ok := strings.CutPrefix(chain, chainEgress); ok {
			keys = append(keys, k)
		} else if k, ok := strings.CutPrefix(chain, chainIngress); ok {
			keys = append(keys, k)
		}
	}
	slices.Sort(keys)
	return slices.Compact(keys)
}

// trouble looks at what NICs share: hooks, dispatch, foreign rules in our chains.
func (t *Table) trouble(tables map[xtables.Tool]xtables.Table) string {
	if on, err := t.kernel.BridgeFiltering(); err != nil {
		return "bridge filtering is not known: " + err.Error()
	} else if !on {
		return "net.bridge.bridge-nf-call-iptables or bridge-nf-call-ip6tables is off"
	}
	for _, tool := range tools {
		table := tables[tool]
		if tool == xtables.Ethernet && !t.filtersARP(table) {
			continue
		}
		for _, h := range hooksOf(tool) {
			if !table.Hooked(h) {
				return fmt.Sprintf("%s %s does not lead to our chains first", tool, h.Chain)
			}
		}
		for chain, rules := range table {
			if !shared(chain) {
				continue
			}
			for _, r := range rules {
				if !ourLine(tool, chain, r, table) {
					return fmt.Sprintf("%s chain %s has a foreign rule: %s", tool, chain, r)
				}
			}
		}
		if tool == xtables.Ethernet {
			continue
		}
		keys := keysOf(table)
		if !sameRules(table[chainForward], forwardRules(keys)) {
			return fmt.Sprintf("%s chain %s was changed", tool, chainForward)
		}
		if !sameRules(table[chainHost], hostRules(keys)) {
			return fmt.Sprintf("%s chain %s was changed", tool, chainHost)
		}
	}
	return ""
}

// filtersARP says that some NIC has a chain against spoofing.
func (t *Table) filtersARP(table xtables.Table) bool {
	for base := range t.owned.Chains {
		if _, ok := table[base+suffixARP]; ok {
			return true
		}
	}
	return false
}

func sameRules(normal, rules []string) bool {
	return slices.EqualFunc(normal, rules, func(n, r string) bool { return n == xtables.Normal(r) })
}

// ourLine says that a rule of a shared chain is one that we could have written.
func ourLine(tool xtables.Tool, chain, rule string, table xtables.Table) bool {
	target := xtables.Option(rule, "-j")
	if _, ok := table[target]; !ok {
		return false
	}
	base, _ := baseOf(target)
	switch {
	case chain == chainARP && tool == xtables.Ethernet:
		tap := xtables.Option(rule, "-i")
		return tap != "" && rule == xtables.Normal(arpLine(tap, base))
	case strings.HasPrefix(chain, chainEgress):
		tap := xtables.Option(rule, "--physdev-in")
		return tap != "" && bucketOf(tap) == chain[len(chainEgress):] && rule == xtables.Normal(egressLine(tap, base))
	case strings.HasPrefix(chain, chainIngress):
		tap := xtables.Option(rule, "--physdev-out")
		return tap != "" && bucketOf(tap) == chain[len(chainIngress):] && rule == xtables.Normal(ingressLine(tap, base))
	}
	return false
}

// Diff implements engine.Kind.
func (k *Chains) Diff(id string, w desired.SecGroup, have Filter) string {
	if have.Base != w.Chain {
		return fmt.Sprintf("chains are called %s", have.Base)
	}
	if have.Trouble != "" {
		return have.Trouble
	}
	want := k.t.expected(id, w)
	for _, tool := range tools {
		for _, chain := range slices.Sorted(maps.Keys(want[tool])) {
			rules, there := have.Content[tool][chain]
			if d := diffRules(want[tool][chain], rules); !there || d != "" {
				if !there {
					d = "is missing"
				}
				return fmt.Sprintf("%s chain %s %s", tool, chain, d)
			}
		}
		for chain := range have.Content[tool] {
			if _, ok := want[tool][chain]; !ok {
				return fmt.Sprintf("%s chain %s is too many", tool, chain)
			}
		}
	}
	return ""
}

// diffRules names the first rule that differs.
func diffRules(want, have []string) string {
	for i, r := range want {
		if i == len(have) {
			return fmt.Sprintf("has %d of %d rules", len(have), len(want))
		}
		if have[i] != r {
			return fmt.Sprintf("rule %d is %q and not %q", i+1, have[i], r)
		}
	}
	if len(have) > len(want) {
		return fmt.Sprintf("has %d rules and not %d", len(have), len(want))
	}
	return ""
}

// Ensure implements engine.Kind. It collects; Flush applies.
func (k *Chains) Ensure(ctx context.Context, id string, w desired.SecGroup, have *Filter) (Filter, error) {
	t := k.t
	if err := t.turn.Take(ctx); err != nil {
		return Filter{}, err
	}
	defer t.turn.Give()
	for _, dir := range []struct {
		field string
		rules []desired.Rule
	}{{"ingress", w.Ingress}, {"egress", w.Egress}} {
		for i, r := range dir.rules {
			if s, ok := t.sets[r.Set]; r.Set != "" && (!ok || !s.complete()) {
				return Filter{}, engine.Fault(desired.CodeMissing, "wait for the security group's members to reach this host, or remove the rule",
					fmt.Errorf("apply rules of %s: %s[%d].set: no ipset %s", w.Tap, dir.field, i, r.Set))
			}
		}
	}
	// Refused here and not in Flush, where it would hold up the others.
	tables := t.cache
	if tables == nil {
		var err error
		if tables, err = t.read(ctx); err != nil {
			return Filter{}, err
		}
	}
	if chain := t.taken(w.Chain, tables); chain != "" {
		return Filter{}, engine.Fault(desired.CodeConflict, "rename or remove the chain on the host",
			fmt.Errorf("apply rules of %s: %s is there and not ours", w.Tap, chain))
	}
	n := &nic{id: id, spec: w, content: render(id, w)}
	n.normal = n.content.normal()
	if have != nil && have.Base != w.Chain {
		n.old = have.Base
	}
	t.ensure[id] = n
	delete(t.remove, id)
	return Filter{Base: w.Chain, Content: expect(w, n.normal)}, nil
}

// Remove implements engine.Kind. It collects; Flush applies.
func (k *Chains) Remove(ctx context.Context, id string, have Filter) error {
	if err := k.t.turn.Take(ctx); err != nil {
		return err
	}
	defer k.t.turn.Give()
	delete(k.t.ensure, id)
	k.t.remove[id] = have
	k.t.expectMu.Lock()
	delete(k.t.expects, id)
	k.t.expectMu.Unlock()
	return nil
}

// Flush implements engine.Flusher: one transaction for each of iptables, ip6tables and ebtables that has changes.
func (k *Chains) Flush(ctx context.Context) error {
	t := k.t
	if err := t.turn.Take(ctx); err != nil {
		return err
	}
	defer t.turn.Give()
	if len(t.ensure) == 0 && len(t.remove) == 0 {
		return nil
	}
	ensure, remove := t.ensure, t.remove
	t.ensure, t.remove = map[string]*nic{}, map[string]Filter{}

	if len(ensure) > 0 {
		if on, err := t.kernel.BridgeFiltering(); err != nil || !on {
			if err := t.kernel.FilterBridges(); err != nil {
				return engine.Fault(desired.CodeMissing, "load the kernel module br_netfilter on the host",
					fmt.Errorf("pass bridged packets to iptables: %w", err))
			}
		}
	}
	tables, err := t.read(ctx)
	if err != nil {
		return err
	}
	if err := t.note(func(o *owned) {
		for id, n := range ensure {
			o.Chains[n.spec.Chain] = id
		}
	}); err != nil {
		return err
	}
	began, exact := t.gen, t.cached
	next := map[xtables.Tool]xtables.Table{}
	applied := uint32(0)
	for _, tool := range tools {
		s := script(tool, tables[tool], ensure, remove)
		next[tool] = tables[tool]
		if s.Empty() {
			continue
		}
		if err := s.Apply(ctx, t.run); err != nil {
			t.cached = false
			return err
		}
		applied++
		next[tool] = s.Result()
	}
	// Where the kernel counted exactly our own transactions, we know what it holds now without reading it.
	gen, ok := t.generation(ctx)
	t.cached = exact && ok && gen == began+applied
	t.cache, t.gen = next, gen
	return t.note(func(o *owned) {
		maps.DeleteFunc(o.Chains, func(base, _ string) bool {
			for _, tool := range tools {
				for _, suffix := range []string{suffixIngress, suffixEgress, suffixSource, suffixARP} {
					if _, ok := next[tool][base+suffix]; ok {
						return false
					}
				}
			}
			return true
		})
	})
}

// taken says which chain of a NIC's names is there and someone else's; "" for none. A chain without our comment counts as ours when our notes
// have it, or when it is empty: that is what a flush by hand leaves.
func (t *Table) taken(base string, tables map[xtables.Tool]xtables.Table) string {
	if t.owned.Chains[base] != "" {
		return ""
	}
	for _, tool := range []xtables.Tool{xtables.IPv4, xtables.IPv6} {
		for _, suffix := range []string{suffixIngress, suffixEgress} {
			if rules := tables[tool][base+suffix]; len(rules) > 0 && markOf(rules) == "" {
				return fmt.Sprintf("%s chain %s", tool, base+suffix)
			}
		}
	}
	return ""
}

// script is the transaction that takes one table from what it is to what it should be.
func script(tool xtables.Tool, table xtables.Table, ensure map[string]*nic, remove map[string]Filter) *xtables.Script {
	s := xtables.NewScript(tool, table)
	touched := map[string]bool{} // bases whose lines are made anew or go
	wanted := map[string]bool{}
	for _, n := range ensure {
		touched[n.spec.Chain], wanted[n.spec.Chain] = true, true
		if n.old != "" {
			touched[n.old] = true
		}
	}
	for _, f := range remove {
		touched[f.Base] = true
	}
	// What leads to the chains of NICs that stay as they are, and then what leads to the new ones.
	dispatch := map[string][]string{}
	for chain, rules := range table {
		if !shared(chain) {
			continue
		}
		dispatch[chain] = nil
		for _, r := range rules {
			if base, _ := baseOf(xtables.Option(r, "-j")); ourLine(tool, chain, r, table) && !touched[base] {
				dispatch[chain] = append(dispatch[chain], r)
			}
		}
	}
	for _, id := range slices.Sorted(maps.Keys(ensure)) {
		n := ensure[id]
		for chain, rules := range n.content[tool] {
			if now, ok := table[chain]; !ok || !slices.Equal(now, n.normal[tool][chain]) {
				s.ChainAs(chain, rules, n.normal[tool][chain])
			}
		}
		for chain, rules := range lines(n.spec.Tap, n.spec.Chain, n.content)[tool] {
			dispatch[chain] = append(dispatch[chain], rules...)
		}
	}
	// A chain's lines stand in order of their text, so that the same NICs give the same chain.
	final := xtables.Table{}
	for chain, rules := range dispatch {
		if len(rules) == 0 {
			s.Drop(chain)
			continue
		}
		for i, r := range rules {
			rules[i] = loadMatch(r)
		}
		slices.SortFunc(rules, func(a, b string) int { return strings.Compare(xtables.Normal(a), xtables.Normal(b)) })
		rules = slices.CompactFunc(rules, func(a, b string) bool { return xtables.Normal(a) == xtables.Normal(b) })
		final[chain] = rules
		if now, ok := table[chain]; !ok || !sameRules(now, rules) {
			s.Chain(chain, rules)
		}
	}
	shareds := map[string][]string{}
	if keys := keysOf(final); tool != xtables.Ethernet {
		shareds[chainForward], shareds[chainHost] = forwardRules(keys), hostRules(keys)
	}
	for chain, rules := range shareds {
		switch now, ok := table[chain]; {
		case len(final) == 0:
			s.Drop(chain)
		case !ok || !sameRules(now, rules):
			s.Chain(chain, rules)
		}
	}
	for _, h := range hooksOf(tool) {
		if len(final) == 0 {
			s.Unhook(h)
		} else {
			s.Hook(h)
		}
	}
	// Chains whose NIC is gone, or does not need them any more.
	for base := range touched {
		for _, suffix := range []string{suffixIngress, suffixEgress, suffixSource, suffixARP} {
			if wanted[base] && needs(ensure, base, tool, base+suffix) {
				continue
			}
			s.Drop(base + suffix)
		}
	}
	return s
}

func needs(ensure map[string]*nic, base string, tool xtables.Tool, chain string) bool {
	for _, n := range ensure {
		if n.spec.Chain == base {
			_, ok := n.content[tool][chain]
			return ok
		}
	}
	return false
}

// loadMatch gives a rule that was read back in normal form the "-m" that a restore program needs.
func loadMatch(rule string) string {
	if strings.Contains(rule, "--physdev") && !strings.Contains(rule, "-m physdev") {
		return "-m physdev " + rule
	}
	return rule
}

// Watch implements engine.Watcher: rules that others changed are seen within a second or two.
func (k *Chains) Watch(ctx context.Context, changed func(string)) error {
	return k.t.watch(ctx, 500*time.Millisecond, 2*time.Second, changed)
}

// watch looks at the generation every tick, and at most every pause it says that something changed. Without nft it reads the
// hooks every pause.
func (t *Table) watch(ctx context.Context, tick, pause time.Duration, changed func(string)) error {
	timer := time.NewTicker(tick)
	defer timer.Stop()
	var told time.Time
	var toldGen uint32
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case now := <-timer.C:
			if now.Sub(told) < pause {
				continue
			}
			drift := false
			if err := t.turn.Take(ctx); err != nil {
				return err
			}
			busy := len(t.owned.Chains) > 0
			if busy {
				if gen, ok := t.generation(ctx); ok {
					drift = (!t.cached || gen != t.gen) && gen != toldGen
					toldGen = gen
				} else {
					drift = !t.hooked(ctx)
					told = now
				}
				on, err := t.kernel.BridgeFiltering()
				drift = drift || err == nil && !on
			}
			t.turn.Give()
			if drift {
				told = now
				changed("")
			}
		}
	}
}

// hooked reads only the built-in chains: a flush empties them, too.
func (t *Table) hooked(ctx context.Context) bool {
	for _, tool := range []xtables.Tool{xtables.IPv4, xtables.IPv6} {
		for _, h := range hooksOf(tool) {
			out, err := t.run.Run(ctx, listChain(tool, h.Chain))
			if err != nil {
				continue // not known: the sweep will tell
			}
			table, err := xtables.Parse([]byte("*filter\n" + dropPolicies(string(out))))
			if err == nil && !table.Hooked(h) {
				return false
			}
		}
	}
	return true
}
