// Package dhcp drives the kind dhcp: for each layer 3 network a dnsmasq in a network namespace of its own, with a port on the network's
// bridge.
//
// # What it guarantees
//
//   - Only reservations of the document are answered, whoever asks.
//   - Nothing that the server sends leaves the host, and nothing reaches it but from guests of this host; DHCP of guests
//     leaves the host nowhere on a bridge that is served. Every host has the same server's address, so ARP for it stays, too.
//     The rules for this are in force before the server has a port. See isolation.go.
//   - The server is a daemon of its own: it outlives the agent, and an agent that starts anew finds it by its pid file and its
//     command line. Nothing is ever killed by name.
//   - New reservations are read without a restart. A restart happens when an option changes, also of one guest (NoGateway), or when an
//     address goes to another guest while the old one's lease runs: dnsmasq would keep it from the new one.
//   - It is nobody, unless a directory on the way to its files is closed to others; then it is root, and the log says so.
//   - A dead server, a deleted namespace, a port off its bridge or missing rules are found within 2 s.
//
// # What it leaves to others
//
// The bridge is agent/netdev's. Guests that send what they may not are agent/secgroup's.
package dhcp

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/rs/zerolog"

	"shoal/agent/engine"
	"shoal/agent/host"
	"shoal/agent/xtables"
	"shoal/desired"
)

// Inner is the name of the server's device inside its namespace.
const Inner = "dhcp0"

// mark starts the alias of a port.
const mark = "shoal dhcp "

// Link is a device of the agent's own namespace.
type Link struct {
	Name, Alias, Master, Type string
	Up                        bool
	MTU                       int
}

// Place is where a server is. It is noted in a file before anything of it is made.
type Place struct {
	Namespace string       `json:"namespace"`
	Port      string       `json:"port"`
	Bridge    string       `json:"bridge"`
	Server    netip.Prefix `json:"server"`
}

// Machine is what the kind needs of a host beside commands and files.
type Machine interface {
	// Links lists the devices of the agent's own namespace.
	Links(ctx context.Context) ([]Link, error)
	// Inside gives the addresses of the device Inner in a namespace; ok is false when there is no such namespace or device, or it is down.
	Inside(ctx context.Context, namespace string) (addrs []netip.Prefix, ok bool, err error)
	// HasNamespace says whether a namespace of that name is there.
	HasNamespace(ctx context.Context, namespace string) (bool, error)
	// Plumb makes the namespace, and in it the device Inner with the server's address, whose other end is a port of the bridge with an
	// alias. Parts that are right stay.
	Plumb(ctx context.Context, p Place, alias string, mtu int) error
	// Unplumb removes port and namespace; absent is success.
	Unplumb(ctx context.Context, p Place) error
	// Daemon is the configuration file of the dnsmasq that was started with one in dir, in that namespace; "" when
	// none runs.
	Daemon(ctx context.Context, dir, namespace string) (conf string, pid int, err error)
	// Start runs dnsmasq as a daemon in a namespace. It writes its pid to dir/pid.
	Start(ctx context.Context, dir, namespace, conf string) error
	// Reload makes the daemon read its reservations again.
	Reload(ctx context.Context, pid int) error
	// Stop ends every dnsmasq that was started with a configuration file in dir.
	Stop(ctx context.Context, dir string) error
	// Generation counts transactions on nft tables; an error means that it is not known.
	Generation() (uint32, error)
}

// Kind is the kind dhcp.
type Kind struct {
	run     host.Runner
	machine Machine
	dir     string
	log     zerolog.Logger

	mu     sync.Mutex
	places map[string]Place

	// turn is held while the rules that all networks share are looked at or changed. It guards what follows.
	turn host.Turn
	// table is what ebtables held at generation gen.
	table xtables.Table
	gen   uint32
	nft   bool
	known bool
}

// New makes the kind. Configurations, leases and notes are under dir.
func New(run host.Runner, machine Machine, dir string, log zerolog.Logger) (*Kind, error) {
	k := &Kind{run: run, machine: machine, dir: dir, log: log, places: map[string]Place{}, turn: host.NewTurn()}
	entries, err := os.ReadDir(dir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("read places of DHCP servers: %w", err)
	}
	for _, e := range entries {
		b, err := os.ReadFile(filepath.Join(dir, e.Name(), "place.json"))
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		var p Place
		if err == nil {
			err = json.Unmarshal(b, &p)
		}
		if err != nil {
			return nil, fmt.Errorf("read place of DHCP server %s: %w", e.Name(), err)
		}
		k.places[e.Name()] = p
	}
	if at := closed(dir); at != "" {
		log.Warn().Str("kind", string(desired.KindDHCP)).Str("dir", at).Msg("dhcp servers run as root: others can't go through the directory; chmod o+x it")
	}
	return k, nil
}

// all are the places of all servers.
func (k *Kind) all() map[string]Place {
	k.mu.Lock()
	defer k.mu.Unlock()
	return maps.Clone(k.places)
}

// Server is what is there of a network's server.
type Server struct {
	Place Place
	// Trouble says what is wrong with its place: namespace, port, address; empty for nothing.
	Trouble string
	// Exposed says what is wrong with its isolation; empty for nothing.
	Exposed string
	// Conf is the hash of the configuration that runs, Hosts that of the reservations it has read; empty when it does not run.
	Conf, Hosts string
	Leases      map[string]netip.Addr
}

// Observe implements engine.Kind.
func (k *Kind) Observe(ctx context.Context) (map[string]Server, error) {
	links, err := k.machine.Links(ctx)
	if err != nil {
		return nil, err
	}
	places := k.all()
	for _, l := range links {
		// Our notes may be lost: the port has a mark of its own.
		if id, ok := strings.CutPrefix(l.Alias, mark); ok && places[id].Port == "" {
			places[id] = Place{Namespace: "shoal-" + id, Port: l.Name, Bridge: l.Master}
		}
	}
	found := map[string]Server{}
	if len(places) == 0 {
		return found, nil
	}
	exposed, err := k.exposed(ctx, links)
	if err != nil {
		return nil, err
	}
	for id, p := range places {
		s, err := k.look(ctx, id, p, links)
		if err != nil {
			return nil, err
		}
		s.Exposed = exposed
		found[id] = s
	}
	return found, nil
}

// look observes one server, without its isolation.
func (k *Kind) look(ctx context.Context, id string, p Place, links []Link) (Server, error) {
	s := Server{Place: p}
	dir := filepath.Join(k.dir, id)
	port := slices.IndexFunc(links, func(l Link) bool { return l.Name == p.Port })
	addrs, ok, err := k.machine.Inside(ctx, p.Namespace)
	if err != nil {
		return s, err
	}
	switch {
	case !ok:
		s.Trouble = "namespace " + p.Namespace + " or its device is gone"
	case !slices.Contains(addrs, p.Server):
		s.Trouble = "server has not its address " + p.Server.String()
	case port < 0:
		s.Trouble = "port " + p.Port + " is gone"
	case links[port].Alias != mark+id:
		s.Trouble = "port " + p.Port + " is not ours"
	case links[port].Master != p.Bridge:
		s.Trouble = "port " + p.Port + " is off bridge " + p.Bridge
	case !links[port].Up:
		s.Trouble = "port " + p.Port + " is down"
	}
	conf, pid, err := k.machine.Daemon(ctx, dir, p.Namespace)
	if err != nil {
		return s, err
	}
	hosts, err := os.ReadFile(filepath.Join(dir, "hosts"))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return s, err
	}
	if conf != "" {
		s.Conf = confHash(conf)
		// A crash between writing and reloading leaves a note that does not fit.
		if note, err := os.ReadFile(filepath.Join(dir, "loaded")); err == nil && string(note) == loadedNote(pid, hash(hosts)) {
			s.Hosts = hash(hosts)
		}
	}
	b, err := os.ReadFile(filepath.Join(dir, "leases"))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return s, err
	}
	macs := hostMACs(hosts)
	for _, l := range ParseLeases(b) {
		mac := l.MAC
		if mac == "" {
			mac = macs[l.IP] // IPv6 leases are held by DUID
		}
		if mac == "" || !l.Expires.IsZero() && l.Expires.Before(time.Now()) {
			continue
		}
		if s.Leases == nil {
			s.Leases = map[string]netip.Addr{}
		}
		s.Leases[mac] = l.IP
	}
	return s, nil
}

func hash(b []byte) string {
	h := sha256.Sum256(b)
	return hex.EncodeToString(h[:8])
}

func loadedNote(pid int, hosts string) string { return fmt.Sprintf("%d %s\n", pid, hosts) }

// confName is the name of a configuration file: a process tells by its command line what it runs with.
func confName(conf []byte) string { return "dnsmasq-" + hash(conf) + ".conf" }

func confHash(path string) string {
	return strings.TrimSuffix(strings.TrimPrefix(filepath.Base(path), "dnsmasq-"), ".conf")
}

func placeOf(w desired.DHCP) Place { return Place{w.Namespace, w.Port, w.Bridge, w.Server} }

// Diff implements engine.Kind.
func (k *Kind) Diff(id string, w desired.DHCP, have Server) string {
	switch {
	case have.Place != placeOf(w):
		return fmt.Sprintf("server is %s on %s", have.Place.Server, have.Place.Bridge)
	case have.Trouble != "":
		return have.Trouble
	case have.Exposed != "":
		return have.Exposed
	case have.Conf == "":
		return "dnsmasq does not run"
	case have.Conf != hash(Config(w, filepath.Join(k.dir, id), k.user())):
		return "dnsmasq runs with other options"
	case have.Hosts != hash(Hosts(w)):
		return "dnsmasq has other reservations"
	}
	return ""
}

// Facts implements engine.Facter.
func (k *Kind) Facts(_ string, have Server) any { return desired.DHCPFacts{Leases: have.Leases} }

// Ensure implements engine.Kind.
func (k *Kind) Ensure(ctx context.Context, id string, w desired.DHCP, have *Server) (Server, error) {
	if err := k.ensure(ctx, id, w, have); err != nil {
		return Server{}, fmt.Errorf("serve DHCP on %s: %w", w.Bridge, err)
	}
	links, err := k.machine.Links(ctx)
	if err != nil {
		return Server{}, err
	}
	s, err := k.look(ctx, id, placeOf(w), links)
	if err != nil {
		return Server{}, err
	}
	s.Exposed, err = k.exposed(ctx, links)
	return s, err
}

func (k *Kind) ensure(ctx context.Context, id string, w desired.DHCP, have *Server) error {
	if filepath.Base(id) != id || id == "." || id == ".." {
		return engine.Final(engine.Fault(desired.CodeInvalid, "", fmt.Errorf("id %q can't be a directory's name", id)))
	}
	for i, e := range w.Entries {
		if e.IP.Is4() != w.Server.Addr().Is4() || !w.Server.Contains(e.IP) {
			return engine.Final(engine.Fault(desired.CodeInvalid, "", fmt.Errorf("entries[%d].ip: %s is not in the network %s", i, e.IP, w.Server.Masked())))
		}
	}
	place, dir := placeOf(w), filepath.Join(k.dir, id)
	if have != nil && have.Place != place {
		if err := k.remove(ctx, id, have.Place); err != nil {
			return err
		}
		have = nil
	}
	links, err := k.machine.Links(ctx)
	if err != nil {
		return err
	}
	i := slices.IndexFunc(links, func(l Link) bool { return l.Name == w.Bridge })
	if i < 0 {
		return engine.Fault(desired.CodeMissing, "make the bridge on this host, or wait for the layer 2 network to be made",
			fmt.Errorf("bridge %s is not there", w.Bridge))
	}
	if err := k.claim(ctx, id, place, links); err != nil {
		return err
	}
	if err := k.isolate(ctx, links); err != nil {
		return err
	}
	if have == nil || have.Trouble != "" {
		// A server is bound to its device and, as nobody, deaf on a new one of that name. It ends first: were we cut off after
		// making the device, nothing would show it.
		if err := k.machine.Stop(ctx, dir); err != nil {
			return err
		}
		// A port with a smaller MTU would lower the bridge's.
		if err := k.machine.Plumb(ctx, place, mark+id, max(links[i].MTU, w.MTU)); err != nil {
			return err
		}
	}
	return k.serve(ctx, id, dir, w)
}

// claim notes a place before anything is made there, and refuses names that others use.
func (k *Kind) claim(ctx context.Context, id string, p Place, links []Link) error {
	k.mu.Lock()
	now, ours := k.places[id]
	k.mu.Unlock()
	if ours && now == p {
		return nil
	}
	for _, l := range links {
		if l.Name == p.Port && l.Alias != mark+id && (l.Alias != "" || l.Up || l.Master != "" || l.Type != "veth") {
			return engine.Fault(desired.CodeConflict, "rename or remove "+p.Port+" on the host",
				fmt.Errorf("%s is there and not ours (type %s, alias %q)", l.Name, l.Type, l.Alias))
		}
	}
	if p.Namespace != "shoal-"+id {
		there, err := k.machine.HasNamespace(ctx, p.Namespace)
		if err != nil {
			return err
		}
		if there {
			return engine.Fault(desired.CodeConflict, "ip netns del "+p.Namespace, fmt.Errorf("namespace %s is there and not ours", p.Namespace))
		}
	}
	b, err := json.Marshal(p)
	if err != nil {
		return err
	}
	if err := host.WriteFile(filepath.Join(k.dir, id, "place.json"), append(b, '\n'), 0o644); err != nil {
		return err
	}
	k.mu.Lock()
	k.places[id] = p
	k.mu.Unlock()
	return nil
}

// serve brings dnsmasq to run with what is wanted.
func (k *Kind) serve(ctx context.Context, id, dir string, w desired.DHCP) error {
	conf, hosts := Config(w, dir, k.user()), Hosts(w)
	path := filepath.Join(dir, confName(conf))
	leases := filepath.Join(dir, "leases")
	b, err := os.ReadFile(leases)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	kept, stale := pruneLeases(b, hosts)
	for file, content := range map[string][]byte{path: conf, filepath.Join(dir, "hosts"): hosts, filepath.Join(dir, "names"): Names(w)} {
		if now, err := os.ReadFile(file); err == nil && string(now) == string(content) {
			continue
		}
		if err := host.WriteFile(file, content, 0o644); err != nil {
			return err
		}
	}
	running, pid, err := k.machine.Daemon(ctx, dir, w.Namespace)
	if err != nil {
		return err
	}
	if running == path && !stale {
		if note, err := os.ReadFile(filepath.Join(dir, "loaded")); err == nil && string(note) == loadedNote(pid, hash(hosts)) {
			return nil
		}
		if err := k.machine.Reload(ctx, pid); err != nil {
			return err
		}
	} else {
		if err := k.machine.Stop(ctx, dir); err != nil {
			return err
		}
		if stale {
			if err := host.WriteFile(leases, kept, 0o644); err != nil {
				return err
			}
		}
		if err := k.machine.Start(ctx, dir, w.Namespace, path); err != nil {
			return err
		}
		if running, pid, err = k.machine.Daemon(ctx, dir, w.Namespace); err != nil {
			return err
		}
		if running == "" {
			return fmt.Errorf("start dnsmasq: it ended at once; try \"nsenter --net=/run/netns/%s dnsmasq --conf-file=%s --no-daemon\"", w.Namespace, path)
		}
		old, err := filepath.Glob(filepath.Join(dir, "dnsmasq-*.conf"))
		if err != nil {
			return err
		}
		for _, o := range old {
			if o != path {
				if err := os.Remove(o); err != nil {
					return err
				}
			}
		}
		k.log.Info().Str("kind", string(desired.KindDHCP)).Str("id", id).Int("pid", pid).Msg("dhcp server started")
	}
	return host.WriteFile(filepath.Join(dir, "loaded"), []byte(loadedNote(pid, hash(hosts))), 0o644)
}

// user is whom dnsmasq becomes. It reads its reservations again as that user, who has to get at them; a guest that broke into it would
// be that user. So it is root only where some directory above ours is closed to all others.
func (k *Kind) user() string {
	if closed(k.dir) != "" {
		return "root"
	}
	return "nobody"
}

// closed is the directory on the way to dir that others can't go through; "" for none.
func closed(dir string) string {
	for {
		if info, err := os.Stat(dir); err == nil && info.Mode().Perm()&0o001 == 0 {
			return dir
		}
		if dir == filepath.Dir(dir) {
			return ""
		}
		dir = filepath.Dir(dir)
	}
}

// Remove implements engine.Kind.
func (k *Kind) Remove(ctx context.Context, id string, have Server) error {
	if err := k.remove(ctx, id, have.Place); err != nil {
		return fmt.Errorf("remove DHCP server of %s: %w", id, err)
	}
	return nil
}

func (k *Kind) remove(ctx context.Context, id string, p Place) error {
	dir := filepath.Join(k.dir, id)
	if err := k.machine.Stop(ctx, dir); err != nil {
		return err
	}
	if err := k.machine.Unplumb(ctx, p); err != nil {
		return err
	}
	k.mu.Lock()
	delete(k.places, id)
	k.mu.Unlock()
	links, err := k.machine.Links(ctx)
	if err != nil {
		return err
	}
	if err := k.isolate(ctx, links); err != nil {
		return err
	}
	return os.RemoveAll(dir)
}

// Watch implements engine.Watcher: it looks every second at what is cheap to look at.
func (k *Kind) Watch(ctx context.Context, changed func(string)) error {
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	seen := map[string]string{}
	rules := ""
	// What changed before is found by looking at everything once more.
	first := true
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-tick.C:
		}
		places := k.all()
		if len(places) == 0 {
			continue
		}
		links, err := k.machine.Links(ctx)
		if err != nil {
			return err
		}
		exposed, err := k.exposed(ctx, links)
		if err != nil {
			return err
		}
		for id, p := range places {
			s, err := k.look(ctx, id, p, links)
			if err != nil {
				continue // the sweep tells what is wrong
			}
			now := fmt.Sprint(s)
			if old, ok := seen[id]; ok && old != now {
				changed(id)
			}
			seen[id] = now
		}
		if first || exposed != "" && exposed != rules {
			changed("")
		}
		first, rules = false, exposed
	}
}
