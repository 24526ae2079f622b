package fleet_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/uuid"
	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/nats-io/nats.go/micro"
	"github.com/rs/zerolog"

	"shoal/agent"
	"shoal/agent/link"
	"shoal/agent/sim/fleet"
	"shoal/agent/xtables"
	"shoal/controller"
	"shoal/controller/api"
	"shoal/controller/identity"
	"shoal/controller/resource"
	"shoal/desired"
	"shoal/subjects"
)

// world is an installation in one process: a NATS server, controllers, hosts with agents, a network, and somebody who uses it.
type world struct {
	t     *testing.T
	rng   *rand.Rand
	dir   string
	log   zerolog.Logger
	id    *identity.Identity
	start time.Time
	// running is how many controllers have started.
	running atomic.Int64
	// ca is the file with the authority of servers that are not in this process.
	ca string
	// url is where NATS is, replicas how many servers keep what is precious.
	url      string
	replicas int

	bus         *bus
	web         *web
	backup      string
	controllers []*process
	hosts       []*node
	cables      []*cable
	admin       *nats.Conn // a user's connection, never cut
	ops         *nats.Conn // an operator's, with a controller's rights

	mu        sync.Mutex
	violation []string
	// stopped are VMs whose guests turned themselves off: what is wanted of them is not known then.
	stopped map[string]bool
	ended   bool
}

// process is something that can be killed and started again.
type process struct {
	name  string
	cable *cable
	run   func(ctx context.Context) error

	cancel context.CancelFunc
	done   chan struct{}
	// web is a controller's listener.
	web *listener
}

// node is a host with its agent.
type node struct {
	process
	id, creds, data string
	host            *fleet.Host
	world           *world

	dead atomic.Bool // the agent is being killed: it gets nothing done any more
	// fault decides on faults beside the agent's death; nil for none.
	fault atomic.Pointer[func(op string) fleet.Fault]
	// doom counts calls down to the agent's death; 0 for never.
	doom atomic.Int64
	// drifted is when somebody last took something away behind the agent's back.
	drifted atomic.Int64
	late    atomic.Bool

	mu  sync.Mutex
	gen uint64
}

var errDead = errors.New("the agent is dead")

func newWorld(t *testing.T, rng *rand.Rand, dir string, log io.Writer) *world {
	w := &world{
		t: t, rng: rng, dir: dir, url: inProcessURL, bus: &bus{}, web: &web{listeners: map[string]*listener{}}, stopped: map[string]bool{}, start: time.Now(),
	}
	t.Cleanup(w.end)
	w.log = zerolog.New(zerolog.SyncWriter(log)).With().Timestamp().Logger()
	var err error
	w.id, err = identity.Open(filepath.Join(w.dir, "identity"))
	w.must(err)
	return w
}

// populate starts controllers and agents on a NATS server that runs.
func (w *world) populate(controllers, hosts int) {
	for i := range controllers {
		c := &process{name: fmt.Sprintf("c%d", i+1), cable: w.cable()}
		addr := fmt.Sprintf("10.255.0.%d:8480", i+1)
		c.run = func(ctx context.Context) error {
			cfg := controller.Config{
				Data: filepath.Join(w.dir, c.name), Name: c.name, Identity: filepath.Join(w.dir, "identity"), NATSURL: w.url, Options: w.over(c.cable),
				HTTP: "127.0.0.1:0", Replicas: w.replicas, Version: "test", Log: w.log,
			}
			started := false
			cfg.Ready = func(string) { started = true; w.running.Add(1) }
			defer func() {
				if started {
					w.running.Add(-1)
				}
			}()
			if w.inProcess() {
				c.web = w.web.listen(addr)
				cfg.Listener = c.web
			}
			return controller.Run(ctx, cfg)
		}
		w.controllers = append(w.controllers, c)
		w.launch(c)
	}
	w.admin = w.connect(identity.RoleAdmin, "admin")
	w.ops = w.connect(identity.RoleController, "ops")
	w.site(hosts)
}

// inProcess reports whether the NATS server is one of this process, as in a bubble.
func (w *world) inProcess() bool { return w.url == inProcessURL }

const inProcessURL = "in-process"

// over is how a client connects by a cable.
func (w *world) over(c *cable) []nats.Option {
	if w.inProcess() {
		return []nats.Option{nats.InProcessServer(c), func(o *nats.Options) error {
			o.Secure, o.TLSConfig, o.RootCAsCB = false, nil, nil // there is no TLS within a process
			return nil
		}}
	}
	return []nats.Option{nats.SetCustomDialer(c), nats.RootCAs(w.ca)}
}

func (w *world) cable() *cable {
	c := newCable(w.bus)
	w.cables = append(w.cables, c)
	return c
}

func (w *world) must(err error) {
	w.t.Helper()
	if err != nil {
		w.t.Fatal(err)
	}
}

func (w *world) logf(format string, args ...any) {
	w.log.Info().Str("at", time.Since(w.start).String()).Msg("==== " + fmt.Sprintf(format, args...))
}

// violate notes that something happened that must never happen.
func (w *world) violate(format string, args ...any) error {
	err := fmt.Errorf("INVARIANT: "+format, args...)
	w.mu.Lock()
	defer w.mu.Unlock()
	w.violation = append(w.violation, fmt.Sprintf("after %s: %v", time.Since(w.start), err))
	return err
}

func (w *world) startNATS() {
	o := &server.Options{
		ServerName: "nats", NoSigs: true, DontListen: true, JetStream: true, StoreDir: filepath.Join(w.dir, "nats"), SyncAlways: true,
		PingInterval: 10 * time.Second, MaxPingsOut: 2, MaxPayload: 1 << 20, WriteDeadline: 10 * time.Second, NoLog: true, DisableJetStreamBanner: true,
		JetStreamMaxStore: 1 << 40, JetStreamMaxMemory: 1 << 30,
	}
	w.must(w.id.Configure(o))
	srv, err := server.NewServer(o)
	w.must(err)
	go srv.Start()
	if !srv.ReadyForConnections(time.Minute) {
		w.t.Fatal("the NATS server does not start")
	}
	w.bus.set(srv)
}

func (w *world) stopNATS() {
	srv := w.bus.get()
	w.bus.set(nil)
	// Nobody may be asking for anything: on its way down the server sleeps with a lock that requests want, and the fake clock stands still
	// while anybody waits for a lock.
	for _, c := range w.cables {
		c.reset()
	}
	synctest.Wait()
	srv.Shutdown()
	srv.WaitForShutdown()
}

func (w *world) connect(role identity.Role, name string) *nats.Conn {
	c, err := w.id.Creds(role, name, 0)
	w.must(err)
	nc, err := nats.Connect(w.url, append(w.over(w.cable()), nats.UserJWTAndSeed(c.JWT, string(c.Seed)), nats.CustomInboxPrefix(subjects.Inbox(name)),
		nats.MaxReconnects(-1), nats.ReconnectWait(100*time.Millisecond), nats.RetryOnFailedConnect(true), nats.IgnoreAuthErrorAbort())...)
	w.must(err)
	return nc
}

// launch starts a process. One that ends by itself is started again, as systemd does.
func (w *world) launch(p *process) {
	ctx, cancel := context.WithCancel(context.Background())
	p.cancel, p.done = cancel, make(chan struct{})
	p.cable.heal()
	go func() {
		defer close(p.done)
		for {
			err := p.run(ctx)
			if ctx.Err() != nil {
				return
			}
			w.log.Error().Err(err).Str("process", p.name).Msg("==== ended by itself")
			select {
			case <-ctx.Done():
				return
			case <-time.After(time.Second):
			}
		}
	}()
}

// kill ends a process as kill -9 does: from now on nothing of it reaches anybody.
func (w *world) kill(p *process) {
	p.cable.cut(true, true)
	p.cable.reset()
	if p.web != nil {
		_ = p.web.Close()
	}
	p.cancel()
	<-p.done
}

// launchNode starts a host's agent, unless it runs.
func (w *world) launchNode(n *node) {
	if n.dead.Swap(false) {
		w.launch(&n.process)
	}
}

func (w *world) killNode(n *node) {
	n.dead.Store(true)
	w.kill(&n.process)
}

// decide is a host's faults.
func (n *node) decide(op string) fleet.Fault {
	if n.dead.Load() {
		return fleet.Fault{Err: errDead}
	}
	if left := n.doom.Load(); left > 0 && n.doom.Add(-1) == 0 {
		n.dead.Store(true)
		late := n.late.Load()
		n.world.log.Info().Str("host", n.name).Str("op", op).Bool("late", late).Msg("==== agent dies")
		n.cable.reset()
		n.cable.cut(true, true)
		n.cancel()
		return fleet.Fault{Err: errDead, Late: late}
	}
	if f := n.fault.Load(); f != nil {
		return (*f)(op)
	}
	return fleet.Fault{}
}

// call makes a request, again and again for a while; the answer to an earlier attempt counts.
func (w *world) call(kind resource.Kind, verb string, body map[string]any, patience time.Duration) (api.Reply, error) {
	b, err := json.Marshal(body)
	w.must(err)
	m := nats.NewMsg(subjects.API("admin", string(kind), verb))
	m.Data = b
	m.Header.Set(api.HeaderRequestID, w.uuid())
	deadline := time.Now().Add(patience)
	for {
		ctx, cancel := context.WithTimeout(context.Background(), 6*time.Second)
		answer, err := w.admin.RequestMsgWithContext(ctx, m)
		cancel()
		if err == nil {
			if text := answer.Header.Get(micro.ErrorHeader); text == "" {
				var r api.Reply
				w.must(json.Unmarshal(answer.Data, &r))
				return r, nil
			}
			e := &resource.Error{}
			if json.Unmarshal(answer.Data, e) != nil || e.Code == "" {
				err = errors.New(answer.Header.Get(micro.ErrorHeader))
			} else if e.Code != resource.CodeNotLeader {
				return api.Reply{}, e
			} else {
				err = e
			}
		}
		if time.Now().After(deadline) {
			return api.Reply{}, fmt.Errorf("%w: %w", errUnknown, err)
		}
		time.Sleep(200 * time.Millisecond)
	}
}

// errUnknown is a call of which nobody knows whether it was done.
var errUnknown = errors.New("no answer")

// mustCall is a call that has to succeed.
func (w *world) mustCall(kind resource.Kind, verb string, body map[string]any) api.Reply {
	w.t.Helper()
	r, err := w.call(kind, verb, body, 2*time.Minute)
	if err != nil {
		w.t.Fatalf("%s %s %v: %v", kind, verb, body, err)
	}
	return r
}

// all lists resources with their statuses.
func (w *world) all(kind resource.Kind) []map[string]any {
	w.t.Helper()
	var out []map[string]any
	for {
		b, err := json.Marshal(map[string]any{"limit": 500, "offset": len(out)})
		w.must(err)
		var answer *nats.Msg
		for tries := 0; ; tries++ {
			answer, err = w.admin.Request(subjects.API("admin", string(kind), "list"), b, 6*time.Second)
			if err == nil && answer.Header.Get(micro.ErrorHeader) == "" {
				break
			}
			if tries > 300 {
				w.t.Fatalf("list %s: %v %v", kind, err, answer)
			}
			time.Sleep(200 * time.Millisecond)
		}
		var page struct {
			Items []map[string]any `json:"items"`
			Total int              `json:"total"`
		}
		w.must(json.Unmarshal(answer.Data, &page))
		out = append(out, page.Items...)
		if len(out) >= page.Total || len(page.Items) == 0 {
			return out
		}
	}
}

func (w *world) uuid() string {
	var b [16]byte
	for i := range b {
		b[i] = byte(w.rng.Uint32())
	}
	u, err := uuid.FromBytes(b[:])
	w.must(err)
	return u.String()
}

// id is the id of what a call made.
func id(r api.Reply) string {
	m, _ := r.Resource.(map[string]any)
	s, _ := m["id"].(string)
	return s
}

// site makes what VMs need, and the hosts.
func (w *world) site(hosts int) {
	w.mustCall("zone", "create", map[string]any{"name": "z1"})
	w.mustCall("cluster", "create", map[string]any{"name": "c1", "zone": "z1"})
	w.mustCall("storage", "create", map[string]any{"name": "local", "zone": "z1", "type": "local", "path": "/srv/shoal", "clusters": []string{"c1"}})
	w.mustCall("storage", "create", map[string]any{"name": "nfs", "zone": "z1", "type": "nfs", "source": "filer:/export", "clusters": []string{"c1"}})
	w.mustCall("vxlanpool", "create", map[string]any{"name": "vx", "zone": "z1", "ranges": []string{"100-199"}})
	w.mustCall("vxlanpool", "attach", map[string]any{"id": "vx", "cluster": "c1", "cidr": "10.0.0.0/16"})
	w.mustCall("l2", "create", map[string]any{"name": "l2a", "zone": "z1", "type": "vxlan", "pool": "vx"})
	w.mustCall("l3", "create", map[string]any{"name": "net1", "l2": "l2a"})
	w.mustCall("iprange", "create", map[string]any{"name": "r1", "network": "net1", "cidr": "10.1.0.0/22"})
	w.mustCall("secgroup", "create", map[string]any{"name": "g0"})
	w.mustCall("secgroup", "create", map[string]any{"name": "g1"})
	for i := range hosts {
		w.addHost(i)
	}
}

func (w *world) addHost(i int) {
	name := fmt.Sprintf("h%d", i+1)
	n := &node{
		process: process{name: name, cable: w.cable()}, data: filepath.Join(w.dir, name), creds: filepath.Join(w.dir, name+".creds"), world: w,
		host: fleet.NewHost(name, fmt.Sprintf("10.0.%d.%d/16", i/250, i%250+1), fleet.Size{CPUs: 64, MemoryMiB: 1 << 18, DiskBytes: 1 << 44}),
	}
	creds, err := w.id.Creds(identity.RoleAgent, "x", 0) // for its key
	w.must(err)
	r := w.mustCall("host", "create", map[string]any{"name": name, "cluster": "c1", "public_key": creds.PublicKey})
	n.id = id(r)
	creds, err = identity.NewCreds(r.JWT, creds.Seed)
	w.must(err)
	w.must(creds.WriteFile(n.creds))
	if len(w.hosts) > 0 {
		n.host.Storage.Share(w.hosts[0].host.Storage)
	}
	n.host.Storage.Export("filer:/export", true)
	n.host.Faults.Set(n.decide)
	n.host.OnStart(func(xml string) error { return w.starts(n, xml) })
	var images *http.Client
	if w.inProcess() {
		images = &http.Client{Transport: &http.Transport{DialContext: w.web.DialContext}}
	}
	n.run = func(ctx context.Context) error {
		machine := n.host.Machine(images)
		return agent.Run(ctx, agent.Config{
			NATSURL: w.url, CA: w.ca, Creds: n.creds, Data: n.data, Version: "test", Log: w.log.With().Str("on", n.name).Logger(), Machine: &machine,
			Connection: func(c *link.Config) {
				c.Options = w.over(n.cable)
				accept := c.OnDocument
				c.OnDocument = func(d desired.Document) error {
					err := accept(d)
					if err == nil {
						n.accepted(d.Head.Gen)
					}
					return err
				}
			},
		})
	}
	w.hosts = append(w.hosts, n)
	w.launch(&n.process)
}

func (n *node) accepted(gen uint64) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if gen < n.gen {
		n.world.violate("host %s went back from generation %d to %d", n.name, n.gen, gen)
	}
	n.gen = gen
}

// driftSeen is how long it may take an agent to see that something was taken away: a sweep.
const driftSeen = 80 * time.Second

// starts is asked before any guest starts.
func (w *world) starts(n *node, xml string) error {
	hw, err := fleet.ParseHardware(xml)
	if err != nil {
		return err
	}
	_, after, _ := strings.Cut(xml, "<uuid>")
	vm, _, _ := strings.Cut(after, "</uuid>")
	for _, o := range w.hosts {
		if o != n && slices.Contains(o.host.Libvirt.Active(), vm) {
			return w.violate("domain %s starts on %s and runs on %s", vm, n.name, o.name)
		}
	}
	if time.Since(time.Unix(0, n.drifted.Load())) < driftSeen {
		return nil
	}
	for _, nic := range hw.NICs {
		if !n.host.DHCP.Serves(nic.MAC.Address) {
			return w.violate("domain %s starts on %s before its DHCP server knows %s", vm, n.name, nic.MAC.Address)
		}
		if chain := "shc-" + strings.TrimPrefix(nic.Target.Dev, "sht"); !n.host.Filter.HasChain(xtables.IPv4, chain) &&
			!n.host.Filter.HasRule(xtables.IPv4, nic.Target.Dev) {
			return w.violate("domain %s starts on %s before the rules of %s are in force", vm, n.name, nic.Target.Dev)
		}
	}
	return nil
}

// settle waits until what the controller wants and what hosts have is the same.
func (w *world) settle(limit time.Duration) (why string) {
	deadline := time.Now().Add(limit)
	for {
		if why = w.unsettled(); why == "" || time.Now().After(deadline) {
			return why
		}
		time.Sleep(time.Second)
	}
}

// unsettled says what of the fleet is not as it is wanted.
func (w *world) unsettled() string {
	js, err := jetstream.New(w.ops)
	w.must(err)
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	observed, err := js.Stream(ctx, subjects.BucketStream(subjects.ObservedBucket))
	if err != nil {
		return "observed: " + err.Error()
	}
	for _, n := range w.hosts {
		kv, err := js.Stream(ctx, subjects.BucketStream(subjects.DesiredBucket(n.id)))
		if err != nil {
			return n.name + ": " + err.Error()
		}
		m, err := kv.GetLastMsgForSubject(ctx, subjects.BucketSubject(subjects.DesiredBucket(n.id), subjects.HeadKey))
		if err != nil {
			return n.name + ": head: " + err.Error()
		}
		head, err := desired.DecodeHead(m.Data)
		w.must(err)
		for ref := range head.Items {
			if ref.Kind == desired.KindOrigin {
				continue // which agents only keep
			}
			m, err := kv.GetLastMsgForSubject(ctx, subjects.BucketSubject(subjects.DesiredBucket(n.id), ref.String()))
			if err != nil {
				return fmt.Sprintf("%s: %s: %v", n.name, ref, err)
			}
			it, err := desired.DecodeItem(m.Data)
			if err != nil {
				return fmt.Sprintf("%s: %s: %v", n.name, ref, err)
			}
			o, err := observed.GetLastMsgForSubject(ctx, subjects.BucketSubject(subjects.ObservedBucket, n.id+"."+ref.String()))
			if err != nil {
				return fmt.Sprintf("%s: %s is not reported: %v", n.name, ref, err)
			}
			st, err := desired.DecodeStatus(o.Data)
			if err != nil {
				return fmt.Sprintf("%s: status of %s: %v", n.name, ref, err)
			}
			if st.Rev < it.Rev || st.Phase != desired.PhaseReady && !(st.Phase == desired.PhaseRefused && st.Fault != nil) {
				return fmt.Sprintf("%s: %s is %s at %d, wanted at %d: %+v", n.name, ref, st.Phase, st.Rev, it.Rev, st.Fault)
			}
		}
	}
	for _, n := range w.all("host") {
		if s, _ := n["status"].(map[string]any); s["state"] != "Connected" {
			return fmt.Sprintf("host %v is %v", n["name"], s["state"])
		}
	}
	for _, vm := range w.all("vm") {
		s, _ := vm["status"].(map[string]any)
		want := map[any]string{"on": "Running", "off": "Stopped", "paused": "Paused"}[vm["power"]]
		if vm["destroyed"] != nil {
			continue
		}
		if s["state"] != want {
			return fmt.Sprintf("vm %v is %v and wanted %v", vm["name"], s["state"], vm["power"])
		}
	}
	return ""
}

// decide is what an operator does after the journal went back: hosts that were told what it has lost are held, until it has grown
// beyond that, as it does by use, and somebody says what counts. Here what hosts have does.
func (w *world) decide(u *user) {
	for range 100 {
		held := 0
		for _, h := range w.all(resource.KindHost) {
			if h["hold"] == nil {
				continue
			}
			if held++; !u.amnesia.Load() {
				_ = w.violate("host %v is held, and the journal never went back: %v", h["name"], h["hold"])
			}
		}
		if held == 0 {
			return
		}
		for range 20 {
			w.mustCall(resource.KindZone, "update", map[string]any{"id": "z1", "description": w.uuid()})
		}
		if _, err := w.call(resource.KindAhead, "adopt", map[string]any{"all": true}, 20*time.Second); err != nil {
			w.logf("operator: ahead adopt: %v", err)
		}
		time.Sleep(10 * time.Second)
	}
}

// end stops everything.
func (w *world) end() {
	if w.ended {
		return
	}
	w.ended = true
	for _, n := range w.hosts {
		n.cancel()
	}
	for _, c := range w.controllers {
		c.cancel()
	}
	for _, n := range w.hosts {
		<-n.done
	}
	for _, c := range w.controllers {
		<-c.done
	}
	w.admin.Close()
	w.ops.Close()
	if !w.inProcess() {
		return
	}
	w.stopNATS()
	time.Sleep(15 * time.Minute) // what is left of cut connections, and the file store's loops
}
