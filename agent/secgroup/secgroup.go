// Package secgroup drives the kinds addrset and secgroup: the members of security groups as ipsets, and the stateful packet filter of
// each NIC as chains of iptables, ip6tables and, against spoofed MACs and ARP, ebtables.
//
// # What it guarantees
//
//   - All chains that changed in a pass go into the kernel by one iptables-restore for each family, atomically: a packet meets the old rules
//     or the new ones. Chains that did not change are not written.
//   - A member that comes or goes is one element of a set, however large the set is.
//   - Connections that were accepted survive a change of rules.
//   - What the kernel holds is compared rule by rule with what it should hold. A flush, a missing hook, a rule added,
//     removed or changed in our chains is drift.
//   - Chains, rules and sets of others are never touched, whatever they are called: ours bear a mark (a comment with the NIC's id) or are
//     noted in a file before they are made.
//
// # The way of a packet
//
//	FORWARD  -m physdev --physdev-is-bridged  ->  SHOAL-FWD       first rule, kept first
//	SHOAL-FWD   by the first letters of the tap  ->  SHOAL-E-sht0, SHOAL-I-sht0, ...; at the end: accept
//	SHOAL-E-sht0    --physdev-in <tap>   ->  <chain>-e   from the guest
//	SHOAL-I-sht0    --physdev-out <tap>  ->  <chain>-i   to the guest
//	INPUT  --physdev-in sht+  ->  SHOAL-HOST  ->  SHOAL-E-...     a guest that talks to the host itself
//
// A NIC's chain returns what it accepts and drops the rest, so that a packet between two guests of one host meets both. With AntiSpoof
// <chain>-e starts with <chain>-s (MAC and addresses), and ebtables has <chain>-a under SHOAL-ARP.
//
// # What it leaves to others
//
// Which rules a NIC has is the controller's business. DHCP's isolation is agent/dhcp's. Known limits: packets that the host
// itself sends to a guest are not filtered; overlapping networks on one host share the kernel's connection table, so an accepted connection
// of one is accepted with the same addresses and ports in the other; neighbour advertisements of IPv6 are not checked for the address they claim.
package secgroup

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"sync"

	"github.com/rs/zerolog"

	"shoal/agent/host"
	"shoal/agent/xtables"
)

// Kernel is what the tables need of the kernel beside their tools.
type Kernel interface {
	// Generation counts transactions on nft tables. An error means that it is not known, and everything is read again every time.
	Generation() (uint32, error)
	// BridgeFiltering says whether bridged packets pass iptables and ip6tables.
	BridgeFiltering() (bool, error)
	// FilterBridges makes it so.
	FilterBridges() error
}

// Table holds the packet filters of a host: both kinds work on it.
type Table struct {
	run    host.Runner
	kernel Kernel
	file   string
	log    zerolog.Logger

	// turn is held during every look at the kernel and every change, so that they don't interleave. It guards what follows.
	turn  host.Turn
	owned owned
	// cache is what the tables held at nft generation gen. Without nft it is never valid.
	cache    map[xtables.Tool]xtables.Table
	gen      uint32
	cached   bool
	nft      bool
	nftKnown bool

	// NICs that wait for Flush.
	ensure map[string]*nic
	remove map[string]Filter

	// What Diff has worked out, under a lock of its own: it does not wait for the kernel.
	expectMu sync.Mutex
	expects  map[string]expectation

	// Sets as they were last read or written, and what waits for Flush.
	sets      map[string]Set
	setEnsure map[string]setChange
	setRemove map[string]Set
}

// owned is the file that tells which names in the kernel are ours.
type owned struct {
	Sets   map[string]string `json:"sets,omitempty"`   // set's name to item
	Chains map[string]string `json:"chains,omitempty"` // chains' name to item
}

// New makes a table that keeps its notes in dir.
func New(run host.Runner, kernel Kernel, dir string, log zerolog.Logger) (*Table, error) {
	t := &Table{
		run: run, kernel: kernel, file: filepath.Join(dir, "owned.json"), log: log, turn: host.NewTurn(),
		expects: map[string]expectation{},
		ensure:  map[string]*nic{}, remove: map[string]Filter{},
		sets: map[string]Set{}, setEnsure: map[string]setChange{}, setRemove: map[string]Set{},
	}
	b, err := os.ReadFile(t.file)
	switch {
	case errors.Is(err, fs.ErrNotExist):
	case err != nil:
		return nil, fmt.Errorf("read names of chains and sets: %w", err)
	default:
		if err := json.Unmarshal(b, &t.owned); err != nil {
			return nil, fmt.Errorf("read names of chains and sets: decode %s: %w", t.file, err)
		}
	}
	if t.owned.Sets == nil {
		t.owned.Sets = map[string]string{}
	}
	if t.owned.Chains == nil {
		t.owned.Chains = map[string]string{}
	}
	return t, nil
}

// Sets is the kind addrset.
func (t *Table) Sets() *Sets { return &Sets{t} }

// Chains is the kind secgroup.
func (t *Table) Chains() *Chains { return &Chains{t} }

// note changes the file of names. It is written before a thing is made and after it is gone.
func (t *Table) note(change func(*owned)) error {
	next := owned{Sets: maps.Clone(t.owned.Sets), Chains: maps.Clone(t.owned.Chains)}
	change(&next)
	if maps.Equal(next.Sets, t.owned.Sets) && maps.Equal(next.Chains, t.owned.Chains) {
		return nil
	}
	b, err := json.Marshal(next)
	if err != nil {
		return fmt.Errorf("note names of chains and sets: %w", err)
	}
	if err := host.WriteFile(t.file, append(b, '\n'), 0o600); err != nil {
		return fmt.Errorf("note names of chains and sets: %w", err)
	}
	t.owned = next
	return nil
}

// generation is the kernel's, where it tells everything about the tables.
func (t *Table) generation(ctx context.Context) (uint32, bool) {
	if !t.nftKnown {
		nft := true
		for _, tool := range tools {
			out, err := t.run.Run(ctx, host.Command{Name: string(tool), Args: []string{"--version"}})
			if errors.Is(err, host.ErrNotInstalled) && tool == xtables.Ethernet {
				continue
			}
			if err != nil {
				return 0, false
			}
			nft = nft && isNFT(out)
		}
		t.nft, t.nftKnown = nft, true
	}
	if !t.nft {
		return 0, false
	}
	gen, err := t.kernel.Generation()
	return gen, err == nil
}

// read gives the three tables, from the cache where nothing has changed since.
func (t *Table) read(ctx context.Context) (map[xtables.Tool]xtables.Table, error) {
	for try := 0; ; try++ {
		gen, ok := t.generation(ctx)
		if ok && t.cached && gen == t.gen {
			return t.cache, nil
		}
		now := map[xtables.Tool]xtables.Table{}
		for _, tool := range tools {
			table, err := xtables.Read(ctx, t.run, tool)
			if errors.Is(err, host.ErrNotInstalled) && tool == xtables.Ethernet {
				// Only needed against spoofing: what needs it says so when it is applied.
				table, err = xtables.Table{}, nil
			}
			if err != nil {
				return nil, err
			}
			now[tool] = table
		}
		after, _ := t.generation(ctx)
		if t.cached = ok && gen == after; t.cached || !ok || try == 3 {
			t.cache, t.gen = now, gen
			return now, nil
		}
	}
}
