package cli_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nkeys"
	"github.com/rogpeppe/go-internal/testscript"
	"github.com/rs/zerolog"

	"shoal/controller"
	"shoal/controller/api"
	"shoal/controller/api/cli"
	"shoal/controller/identity"
	"shoal/controller/resource"
	"shoal/desired"
	"shoal/subjects"
)

func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){
		"shoalctl": func() { os.Exit(cli.Main("test", os.Args[1:])) },
	})
}

// running is a controller in this process.
type running struct {
	data, url string
	// first is the admin account's one-time password.
	first  chan string
	stop   func()
	agents map[string]*agent // of the script, by credentials file
}

// start runs a controller in dir until the test ends or stop is called.
func start(t testing.TB, dir, listen string) *running {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	ready := make(chan string, 1)
	done := make(chan error, 1)
	log := zerolog.Nop()
	if testing.Verbose() {
		log = zerolog.New(zerolog.NewTestWriter(t)).Level(zerolog.WarnLevel)
	}
	first := make(chan string, 1)
	go func() {
		done <- controller.Run(ctx, controller.Config{
			FirstPassword: func(p string) { first <- p },
			AuditReads:    true, // so that the search for secrets finds also those in recorded answers
			Data:          dir, Name: "test", Listen: listen, HTTP: "127.0.0.1:0", Version: "test", Log: log, Ready: func(url string) { ready <- url },
		})
	}()
	r := &running{data: dir, first: first, agents: map[string]*agent{}}
	stopped := false
	r.stop = func() {
		if stopped {
			return
		}
		stopped = true
		cancel()
		if err := <-done; err != nil {
			t.Errorf("the controller ended with %v", err)
		}
	}
	select {
	case r.url = <-ready:
	case err := <-done:
		t.Fatalf("the controller did not start: %v", err)
	case <-time.After(60 * time.Second):
		t.Fatal("the controller did not start in time")
	}
	return r
}

// ca is the file of the authorities to trust.
func (r *running) ca() string { return filepath.Join(r.data, controller.CABundle) }

// viewer makes credentials of a viewer.
func (r *running) viewer(t testing.TB) string {
	t.Helper()
	file := filepath.Join(r.data, "viewer.creds")
	if err := controller.MakeCreds(filepath.Join(r.data, "identity"), "viewer", "ann", 0, file); err != nil {
		t.Fatal(err)
	}
	return file
}

// TestScripts runs shoalctl as a process of its own against a controller in this one. The command "agent FILE" connects
// a stand-in for an agent, with real credentials, which reports whatever its document says as brought about.
func TestScripts(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir: "testdata", RequireExplicitExec: true,
		Setup: func(env *testscript.Env) error {
			tb := env.T().(testing.TB)
			r := start(tb, filepath.Join(env.WorkDir, ".controller"), "127.0.0.1:0")
			env.Defer(r.stop)
			env.Setenv("SHOAL_SERVER", r.url)
			env.Setenv("SHOAL_CREDS", filepath.Join(r.data, controller.AdminCreds))
			env.Setenv("VIEWER", r.viewer(tb))
			env.Setenv("CA", r.ca())
			if err := os.WriteFile(filepath.Join(env.WorkDir, "first.txt"), []byte(<-r.first+"\n"), 0o600); err != nil {
				return err
			}
			_, hostPort, _ := strings.Cut(r.url, "://")
			env.Setenv("HOSTPORT", hostPort)
			env.Setenv("PLAIN", plain(tb))
			env.Setenv("OTHER_CA", filepath.Join(env.WorkDir, "other.pem"))
			if err := otherCA(filepath.Join(env.WorkDir, ".other"), env.Getenv("OTHER_CA")); err != nil {
				return err
			}
			env.Setenv("HOME", env.WorkDir)
			// A program with the race detector otherwise waits for a second before it exits, and there are a hundred here.
			env.Setenv("GORACE", "atexit_sleep_ms=0")
			if err := os.WriteFile(filepath.Join(env.WorkDir, "disk.raw"), bytes.Repeat([]byte("disk"), 1<<18), 0o644); err != nil {
				return err
			}
			env.Values["controller"], env.Values["machines"] = r, map[string]nkeys.KeyPair{}
			return nil
		},
		Cmds: map[string]func(ts *testscript.TestScript, neg bool, args []string){
			"agent": func(ts *testscript.TestScript, _ bool, args []string) {
				a, err := connectAgent(ts.Getenv("SHOAL_SERVER"), ts.Value("controller").(*running).ca(), ts.MkAbs(args[0]), args[1:]...)
				ts.Check(err)
				ts.Defer(a.close)
				ts.Value("controller").(*running).agents[args[0]] = a
			},
			"down": func(ts *testscript.TestScript, _ bool, _ []string) { ts.Value("controller").(*running).stop() },
			// exits CODE COMMAND...: the command must end with that exit code.
			"exits": func(ts *testscript.TestScript, _ bool, args []string) {
				err := ts.Exec(args[1], args[2:]...)
				code := "0"
				var exit interface{ ExitCode() int }
				if errors.As(err, &exit) {
					code = fmt.Sprint(exit.ExitCode())
				}
				if code != args[0] {
					ts.Fatalf("exit code %s, want %s (%v)", code, args[0], err)
				}
			},
			"enrol":    enrolCmd,
			"renew":    renewCmd,
			"nosecret": noSecretCmd,
			// waitfor TEXT COMMAND...: the command's output has the text at last.
			"waitfor": func(ts *testscript.TestScript, _ bool, args []string) {
				for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(20 * time.Millisecond) {
					err := ts.Exec(args[1], args[2:]...)
					if err == nil && strings.Contains(ts.ReadFile("stdout"), args[0]) {
						return
					}
					if time.Now().After(deadline) {
						ts.Fatalf("%v never says %q", args[1:], args[0])
					}
				}
			},
			// atseq FILE: SEQ becomes the sequence of the first call in the file.
			"atseq": func(ts *testscript.TestScript, _ bool, args []string) {
				var calls []struct{ Seq uint64 }
				ts.Check(json.Unmarshal([]byte(ts.ReadFile(args[0])), &calls))
				ts.Setenv("SEQ", fmt.Sprint(calls[0].Seq))
			},
			// stopped AGENT FILE [adopt]: the agent finds the VM whose id is in the file stopped by others, and holds it or says what fits.
			"stopped": func(ts *testscript.TestScript, _ bool, args []string) {
				ts.Check(ts.Value("controller").(*running).agents[args[0]].stopped(strings.TrimSpace(ts.ReadFile(args[1])), len(args) > 2))
			},
			// cancel FILE: cancelling the task whose id is in the file must be refused.
			"cancel": func(ts *testscript.TestScript, _ bool, args []string) {
				if err := ts.Exec("shoalctl", "task", "cancel", strings.TrimSpace(ts.ReadFile(args[0]))); err == nil {
					ts.Fatalf("it was cancelled")
				}
			},
			// holds FILE PART: the file must hold what is in the other.
			"holds": func(ts *testscript.TestScript, _ bool, args []string) {
				if !strings.Contains(ts.ReadFile(args[0]), strings.TrimSpace(ts.ReadFile(args[1]))) {
					ts.Fatalf("%s does not hold what is in %s", args[0], args[1])
				}
			},
			// filemode FILE MODE: the file must have that mode.
			"filemode": func(ts *testscript.TestScript, _ bool, args []string) {
				info, err := os.Stat(ts.MkAbs(args[0]))
				ts.Check(err)
				if got := fmt.Sprintf("%o", info.Mode().Perm()); got != args[1] {
					ts.Fatalf("mode %s, want %s", got, args[1])
				}
			},
		},
	})
}

// otherCA writes the authority of an installation that has nothing to do with this one.
func otherCA(dir, file string) error {
	id, err := identity.Open(dir)
	if err != nil {
		return err
	}
	ca, err := id.CA()
	if err != nil {
		return err
	}
	return os.WriteFile(file, []byte(ca.Bundle()), 0o600)
}

// plain is a NATS server without TLS.
func plain(t testing.TB) string {
	t.Helper()
	s, err := server.NewServer(&server.Options{Host: "127.0.0.1", Port: server.RANDOM_PORT, NoLog: true, NoSigs: true})
	if err != nil {
		t.Fatal(err)
	}
	s.Start()
	t.Cleanup(func() { s.Shutdown(); s.WaitForShutdown() })
	if !s.ReadyForConnections(10 * time.Second) {
		t.Fatal("the plain server does not start")
	}
	return s.Addr().String()
}

// agent says of each item of its document that it is ready. It stands in for agents/sim, which this side must not import.
type agent struct {
	conn *nats.Conn
	host string
	stop chan struct{}
	done chan struct{}
	// refuse are the kinds of items that it refuses.
	refuse map[string]bool

	mu    sync.Mutex
	items map[desired.Ref]desired.Item
}

func connectAgent(url, ca, creds string, refuse ...string) (*agent, error) {
	host, err := api.CredsUser(creds)
	if err != nil {
		return nil, err
	}
	conn, err := nats.Connect(url, nats.RootCAs(ca), nats.UserCredentials(creds), nats.CustomInboxPrefix(subjects.Inbox(host)))
	if err != nil {
		return nil, err
	}
	a := &agent{conn: conn, host: host, stop: make(chan struct{}), done: make(chan struct{}), refuse: map[string]bool{}}
	for _, k := range refuse {
		a.refuse[k] = true
	}
	go a.run()
	return a, nil
}

func (a *agent) close() {
	close(a.stop)
	<-a.done
	a.conn.Close()
}

func (a *agent) run() {
	defer close(a.done)
	hints := make(chan *nats.Msg, 1024)
	if _, err := a.conn.ChanSubscribe(subjects.Hint(a.host, ">"), hints); err != nil {
		return
	}
	a.report(desired.KindHost, desired.HostStatusID, desired.Status{Phase: desired.PhaseReady, Since: time.Now()}, desired.HostFacts{
		Version: "test", Started: time.Now(), Inventory: desired.Inventory{
			Hostname: "h", Arch: "amd64", CPUs: 8, MemoryMiB: 16384, Virt: "qemu", Addresses: map[string][]string{"eth0": {"10.77.0.2/24"}},
		},
	})
	told := map[string]uint64{}
	tick := time.NewTicker(200 * time.Millisecond)
	defer tick.Stop()
	for {
		a.look(told)
		select {
		case <-a.stop:
			return
		case <-hints:
		case <-tick.C:
		}
	}
}

// look reads the document and reports.
func (a *agent) look(told map[string]uint64) {
	bucket := subjects.DesiredBucket(a.host)
	sub, err := a.conn.SubscribeSync(a.conn.NewRespInbox())
	if err != nil {
		return
	}
	defer func() { _ = sub.Unsubscribe() }()
	req := fmt.Sprintf(`{"seq":1,"next_by_subj":%q,"batch":1000}`, subjects.BucketSubject(bucket, ">"))
	if a.conn.PublishRequest(subjects.DirectGet(bucket), sub.Subject, []byte(req)) != nil {
		return
	}
	var head desired.Head
	items := map[desired.Ref]desired.Item{}
	for {
		m, err := sub.NextMsg(2 * time.Second)
		if err != nil || m.Header.Get("Status") != "" {
			break
		}
		key, _ := subjects.BucketKey(bucket, m.Header.Get("Nats-Subject"))
		if key == subjects.HeadKey {
			head, _ = desired.DecodeHead(m.Data)
		} else if it, err := desired.DecodeItem(m.Data); err == nil {
			items[it.Ref()] = it
		}
	}
	if head.Gen == 0 {
		return
	}
	a.mu.Lock()
	a.items = items
	a.mu.Unlock()
	for ref := range head.Items {
		it, ok := items[ref]
		if !ok || told[ref.String()] >= it.Rev {
			continue
		}
		told[ref.String()] = it.Rev
		st, measured := desired.Status{Rev: it.Rev, Phase: desired.PhaseReady, Since: time.Now(), Cause: it.Cause}, facts(it)
		if a.refuse[string(ref.Kind)] {
			st.Phase, st.Fault = desired.PhaseRefused, &desired.Fault{Code: desired.CodeLibvirt, Message: "the test refuses it", Remedy: "ask the test"}
			measured = nil
		}
		a.report(ref.Kind, ref.ID, st, measured)
	}
	for key := range told {
		var ref desired.Ref
		if ref.UnmarshalText([]byte(key)) != nil || told[key] == 0 {
			continue
		}
		if _, still := head.Items[ref]; !still {
			delete(told, key)
			m := nats.NewMsg(subjects.BucketSubject(subjects.ObservedBucket, subjects.ObservedKey(a.host, string(ref.Kind), ref.ID)))
			m.Header.Set("KV-Operation", "DEL")
			_, _ = a.conn.RequestMsg(m, 2*time.Second)
		}
	}
	if told["gen"] < head.Gen {
		told["gen"] = head.Gen
		a.report(desired.KindHost, desired.HostStatusID, desired.Status{Phase: desired.PhaseReady, Since: time.Now()}, desired.HostFacts{
			Gen: head.Gen, Version: "test", Started: time.Now(), Inventory: desired.Inventory{
				Hostname: "h", Arch: "amd64", CPUs: 8, MemoryMiB: 16384, Virt: "qemu", Addresses: map[string][]string{"eth0": {"10.77.0.2/24"}},
			},
		})
	}
}

// stopped reports a VM as stopped by others.
func (a *agent) stopped(vm string, adopt bool) error {
	a.mu.Lock()
	it, ok := a.items[desired.Ref{Kind: desired.KindDomain, ID: vm}]
	a.mu.Unlock()
	if !ok {
		return fmt.Errorf("the document has no VM %s", vm)
	}
	st := desired.Status{
		Rev: it.Rev, Phase: desired.PhaseDrifted, Since: time.Now(), Cause: it.Cause, Drifts: 1, LastDrift: &desired.Drift{At: time.Now(), What: "stopped"},
	}
	if adopt {
		d, err := desired.DecodeSpec[desired.Domain](it)
		if err != nil {
			return err
		}
		d.Power = desired.PowerOff
		if st.Found, err = desired.Canonical(d); err != nil {
			return err
		}
	} else {
		st.Fault = &desired.Fault{Code: desired.CodeHeld, Message: "changed by others and held as it is by policy: stopped"}
	}
	a.report(desired.KindDomain, vm, st, desired.DomainFacts{State: desired.StateShutoff})
	return nil
}

// facts are what a host would measure.
func facts(it desired.Item) any {
	switch it.Kind {
	case desired.KindPool:
		return desired.PoolFacts{TotalBytes: 100 << 30, FreeBytes: 90 << 30}
	case desired.KindVolume:
		v, _ := desired.DecodeSpec[desired.Volume](it)
		return desired.VolumeFacts{VirtualBytes: v.Bytes, ActualBytes: 1 << 20, Absent: v.Absent}
	case desired.KindDomain:
		d, _ := desired.DecodeSpec[desired.Domain](it)
		f := desired.DomainFacts{State: map[desired.Power]desired.DomainState{
			desired.PowerOn: desired.StateRunning, desired.PowerOff: desired.StateShutoff, desired.PowerPaused: desired.StatePaused,
		}[d.Power]}
		if d.Act != nil {
			f.Acted = &desired.Acted{Seq: d.Act.Seq}
		}
		return f
	default:
		return nil
	}
}

func (a *agent) report(kind desired.Kind, id string, st desired.Status, facts any) {
	if facts != nil {
		st.Facts, _ = json.Marshal(facts)
	}
	b, err := st.Encode()
	if err != nil {
		return
	}
	_, _ = a.conn.Request(subjects.BucketSubject(subjects.ObservedBucket, subjects.ObservedKey(a.host, string(kind), id)), b, 2*time.Second)
}

// app runs shoalctl in this process.
func app(r *running, creds string, args ...string) (code int, out, errOut string) {
	var stdout, stderr bytes.Buffer
	env := map[string]string{"SHOAL_SERVER": r.url, "SHOAL_CREDS": creds, "HOME": r.data}
	a := &cli.App{Out: &stdout, Err: &stderr, Getenv: func(k string) string { return env[k] }, Version: "test"}
	code = a.Run(context.Background(), args)
	return code, stdout.String(), stderr.String()
}

// TestAPI_ByThePlainClient: what other clients rely on, without shoalctl in between.
func TestAPI_ByThePlainClient(t *testing.T) {
	r := start(t, t.TempDir(), "127.0.0.1:0")
	defer r.stop()
	admin := filepath.Join(r.data, controller.AdminCreds)
	conn := dial(t, r, admin, "admin")
	request := func(subject, body string, header ...string) (*nats.Msg, error) {
		m := nats.NewMsg(subject)
		m.Data = []byte(body)
		for i := 0; i+1 < len(header); i += 2 {
			m.Header.Set(header[i], header[i+1])
		}
		return conn.RequestMsg(m, 10*time.Second)
	}
	call := func(kind, verb, body string, into any, header ...string) *resource.Error {
		t.Helper()
		m, err := request(subjects.API("admin", kind, verb), body, header...)
		if err != nil {
			t.Fatalf("%s.%s: %v", kind, verb, err)
		}
		if m.Header.Get("Nats-Service-Error") != "" {
			e := &resource.Error{}
			if err := json.Unmarshal(m.Data, e); err != nil || m.Header.Get("Nats-Service-Error-Code") != fmt.Sprint(e.Code.Number()) {
				t.Errorf("%s.%s: error %v with code %s and body %s", kind, verb, err, m.Header.Get("Nats-Service-Error-Code"), m.Data)
			}
			return e
		}
		if into != nil {
			if err := json.Unmarshal(m.Data, into); err != nil {
				t.Fatalf("%s.%s: %v in %s", kind, verb, err, m.Data)
			}
		}
		return nil
	}
	// The controller answers as soon as it leads.
	deadline := time.Now().Add(30 * time.Second)
	for {
		if _, err := request(subjects.API("admin", "zone", "list"), ""); err == nil {
			break
		} else if time.Now().After(deadline) {
			t.Fatal(err)
		}
		time.Sleep(10 * time.Millisecond)
	}

	t.Run("repeated", func(t *testing.T) {
		var first, second, third api.Reply
		if e := call("zone", "create", `{"name":"z","request":"req-1"}`, &first); e != nil {
			t.Fatal(e)
		}
		if e := call("zone", "create", `{"name":"z","request":"req-1"}`, &second); e != nil {
			t.Fatal(e)
		}
		if e := call("zone", "create", `{"name":"z"}`, &third, api.HeaderRequestID, "req-1"); e != nil {
			t.Fatal(e)
		}
		for _, again := range []api.Reply{second, third} {
			if !again.Repeated || again.Seq != first.Seq || idOf(again) != idOf(first) || idOf(first) == "" {
				t.Errorf("got %+v, want the first answer %+v", again, first)
			}
		}
		var page api.Page
		if e := call("zone", "list", `{"count":true}`, &page); e != nil || page.Total != 1 || len(page.Items) != 0 {
			t.Errorf("%v, %+v: want 1 zone and no items", e, page)
		}
	})
	t.Run("refused", func(t *testing.T) {
		for _, c := range []struct {
			kind, verb, body string
			code             resource.ErrorCode
			field            string
		}{
			{"zone", "create", `{"name":"z","colour":"red"}`, resource.CodeInvalid, "colour"},
			{"zone", "create", `{"name":"z","request":"a b"}`, resource.CodeInvalid, "request"},
			{"zone", "create", `{"name":"` + strings.Repeat("x", 129) + `"}`, resource.CodeInvalid, "name"},
			{"zone", "create", `nonsense`, resource.CodeInvalid, "request"},
			{"zone", "get", `{"id":"nope"}`, resource.CodeNotFound, "id"},
			{"cluster", "create", `{"name":"c","zone":"nope"}`, resource.CodeNotFound, "zone"},
			{"zone", "list", `{"where":["colour=red"]}`, resource.CodeInvalid, "colour"},
			{"zone", "list", `{"limit":-1}`, resource.CodeInvalid, "limit"},
			{"image", "create", `{"name":"i","url":"ftp://x"}`, resource.CodeInvalid, "url"},
			{"image", "create", `{"name":"i","url":"http://me:secret@x/"}`, resource.CodeInvalid, "url"},
			{"image", "create", `{"name":"i","url":"http://x/","checksum":"md5:0"}`, resource.CodeInvalid, "checksum"},
			{"host", "create", `{"name":"h","cluster":"nope","public_key":"x"}`, resource.CodeNotFound, "cluster"},
			{"schema", "get", `{"kind":"vm","verb":"fly"}`, resource.CodeNotFound, "verb"},
		} {
			e := call(c.kind, c.verb, c.body, nil)
			if e == nil || e.Code != c.code || !strings.Contains(e.Field, c.field) || e.Message == "" {
				t.Errorf("%s.%s %.60s: got %+v, want %s of %s", c.kind, c.verb, c.body, e, c.code, c.field)
			}
		}
		var page api.Page
		if e := call("zone", "list", `{"count":true}`, &page); e != nil || page.Total != 1 {
			t.Errorf("%v, %+v: a refusal left something behind", e, page)
		}
	})
	t.Run("ambiguous", func(t *testing.T) {
		for range 2 {
			if e := call("zone", "create", `{"name":"twin"}`, nil); e != nil {
				t.Fatal(e)
			}
		}
		e := call("cluster", "create", `{"name":"c","zone":"twin"}`, nil)
		if e == nil || e.Code != resource.CodeConflict || e.Field != "zone" || len(e.Reasons) != 2 {
			t.Errorf("got %+v, want a conflict that names both", e)
		}
	})
	t.Run("as somebody else", func(t *testing.T) {
		if m, err := conn.Request(subjects.API("root", "zone", "list"), nil, 300*time.Millisecond); err == nil {
			t.Errorf("a request in another's name was answered: %s", m.Data)
		}
	})
	t.Run("viewer", func(t *testing.T) {
		c := dial(t, r, r.viewer(t), "ann")
		if m, err := c.Request(subjects.API("ann", "zone", "list"), nil, 10*time.Second); err != nil || m.Header.Get("Nats-Service-Error") != "" {
			t.Errorf("a viewer may not list: %v", err)
		}
		if m, err := c.Request(subjects.API("ann", "zone", "create"), []byte(`{"name":"evil"}`), 300*time.Millisecond); err == nil {
			t.Errorf("a viewer's write was answered: %s", m.Data)
		}
		code, _, errOut := app(r, filepath.Join(r.data, "viewer.creds"), "zone", "create", "evil")
		if code != cli.ExitForbidden || !strings.Contains(errOut, "ann") {
			t.Errorf("shoalctl: exit code %d, %q", code, errOut)
		}
	})
	t.Run("reflected", func(t *testing.T) {
		// The answer to a request must not go where the requester may not write.
		id, err := identity.Open(filepath.Join(r.data, "identity"))
		if err != nil {
			t.Fatal(err)
		}
		creds, err := id.Creds(identity.RoleController, "spy", 0)
		if err != nil {
			t.Fatal(err)
		}
		file := filepath.Join(t.TempDir(), "ctl.creds")
		if err := creds.WriteFile(file); err != nil {
			t.Fatal(err)
		}
		inside := dial(t, r, file, "spy")
		m, err := inside.Request(subjects.API("admin", "zone", "list"), nil, 10*time.Second)
		if err != nil || m.Header.Get("Nats-Service-Error-Code") != "403" {
			t.Errorf("a request that the server does not vouch for: %v, %v", m, err)
		}
		sub, err := inside.SubscribeSync("anywhere")
		if err != nil {
			t.Fatal(err)
		}
		if err := conn.Publish(subjects.API("admin", "zone", "create"), []byte(`{"name":"nobody-listens"}`)); err != nil {
			t.Fatal(err)
		}
		if err := inside.PublishRequest(subjects.API("admin", "zone", "create"), "anywhere", []byte(`{"name":"reflected"}`)); err != nil {
			t.Fatal(err)
		}
		if m, err := sub.NextMsg(5 * time.Second); err != nil || m.Header.Get("Nats-Service-Error-Code") != "403" {
			t.Errorf("got %v, %v, want a refusal", m, err)
		}
		var page api.Page
		if e := call("zone", "list", `{"where":["name in nobody-listens,reflected"]}`, &page); e != nil || page.Total != 0 {
			t.Errorf("%v, %+v: want no such zone", e, page)
		}
	})
	t.Run("micro", func(t *testing.T) {
		m, err := conn.Request("$SRV.INFO.shoal", nil, 10*time.Second)
		var info struct {
			Endpoints []struct {
				Name, Subject string
				Metadata      map[string]string
			}
		}
		if err != nil || json.Unmarshal(m.Data, &info) != nil {
			t.Fatalf("%v: %v", err, m)
		}
		// Beside the operations: four for guests, four for agents.
		if want := len(api.NewRegistry().Operations()) + 8; len(info.Endpoints) != want {
			t.Errorf("%d endpoints, want %d", len(info.Endpoints), want)
		}
		for _, e := range info.Endpoints {
			if e.Metadata["summary"] == "" || e.Metadata["class"] == "" {
				t.Errorf("endpoint %s has no summary or class", e.Name)
			}
		}
	})
	t.Run("many at once", func(t *testing.T) {
		const n = 200
		errs := make(chan error, n)
		for i := range n {
			go func() {
				m, err := conn.Request(subjects.API("admin", "offering", "create"), fmt.Appendf(nil, `{"name":"o%d","cpus":1,"memory":"64MiB"}`, i), 20*time.Second)
				if err == nil && m.Header.Get("Nats-Service-Error") != "" {
					err = errors.New(string(m.Data))
				}
				errs <- err
			}()
		}
		for range n {
			if err := <-errs; err != nil {
				t.Error(err)
			}
		}
		var page api.Page
		if e := call("offering", "list", `{"count":true}`, &page); e != nil || page.Total != n {
			t.Errorf("%v, %d offerings, want %d", e, page.Total, n)
		}
	})
	t.Run("pages", func(t *testing.T) {
		long := strings.Repeat("d", 2000)
		for i := range 600 {
			if e := call("diskoffering", "create", fmt.Sprintf(`{"name":"d%03d","size":1048576,"description":%q}`, i, long), nil); e != nil {
				t.Fatal(e)
			}
		}
		code, out, errOut := app(r, admin, "diskoffering", "list", "-o", "json", "--sort", "name")
		var all []resource.DiskOffering
		if err := json.Unmarshal([]byte(out), &all); code != 0 || err != nil || len(all) != 600 || all[599].Name != "d599" {
			t.Errorf("exit code %d, %v, %d entries, %s", code, err, len(all), errOut)
		}
	})
}

func idOf(r api.Reply) string {
	m, _ := r.Resource.(map[string]any)
	id, _ := m["id"].(string)
	return id
}

func dial(t *testing.T, r *running, creds, user string) *nats.Conn {
	t.Helper()
	c, err := nats.Connect(r.url, nats.RootCAs(r.ca()), nats.UserCredentials(creds), nats.CustomInboxPrefix(subjects.Inbox(user)), nats.ErrorHandler(func(*nats.Conn, *nats.Subscription, error) {}))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	return c
}

// TestWait_OverARestart: a controller that is started again goes on with what it had accepted, and a client that waits does
// not notice.
func TestWait_OverARestart(t *testing.T) {
	free, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	listen := free.Addr().String()
	_ = free.Close()
	dir := t.TempDir()
	r := start(t, dir, listen)
	admin := filepath.Join(dir, controller.AdminCreds)
	if code, _, errOut := app(r, admin, "zone", "create", "z"); code != 0 {
		t.Fatal(errOut)
	}
	r.stop()
	got := make(chan string, 1)
	go func() {
		// It connects once the server is back.
		for {
			code, out, errOut := app(r, admin, "zone", "list", "--no-headers", "--timeout", "20s")
			if code != cli.ExitNoAnswer {
				got <- out + errOut
				return
			}
			time.Sleep(20 * time.Millisecond)
		}
	}()
	r = start(t, dir, listen)
	defer r.stop()
	if out := <-got; !strings.HasPrefix(out, "z ") {
		t.Errorf("got %q, want the zone", out)
	}
}

// TestHostDelete_RevokesItsKey: the agent of a host that is no more, or has a new key, is cut off and does not come in again.
func TestHostDelete_RevokesItsKey(t *testing.T) {
	r := start(t, t.TempDir(), "127.0.0.1:0")
	defer r.stop()
	admin := filepath.Join(r.data, controller.AdminCreds)
	old, now := filepath.Join(r.data, "old.creds"), filepath.Join(r.data, "new.creds")
	must := func(args ...string) {
		t.Helper()
		if code, _, errOut := app(r, admin, args...); code != 0 {
			t.Fatalf("%v: exit code %d: %s", args, code, errOut)
		}
	}
	must("zone", "create", "z")
	must("cluster", "create", "c", "--zone", "z")
	must("host", "add", "h", "--cluster", "c", "--creds-out", old)
	host, err := api.CredsUser(old)
	if err != nil {
		t.Fatal(err)
	}
	gone := make(chan struct{}, 16)
	connect := func(file string) error {
		c, err := nats.Connect(r.url, nats.RootCAs(r.ca()), nats.UserCredentials(file), nats.CustomInboxPrefix(subjects.Inbox(host)), nats.NoReconnect(),
			nats.ErrorHandler(func(*nats.Conn, *nats.Subscription, error) {}), nats.ClosedHandler(func(*nats.Conn) { gone <- struct{}{} }))
		if err == nil {
			t.Cleanup(c.Close)
		}
		return err
	}
	cutOff := func(file string) {
		t.Helper()
		select {
		case <-gone:
		case <-time.After(20 * time.Second):
			t.Fatal("the agent stays connected")
		}
		if err := connect(file); !errors.Is(err, nats.ErrAuthorization) {
			t.Errorf("connecting again gives %v, want a refusal", err)
		}
	}
	if err := connect(old); err != nil {
		t.Fatal(err)
	}
	must("host", "rekey", "h", "--creds-out", now)
	cutOff(old)
	if err := connect(now); err != nil {
		t.Fatalf("the new key is refused: %v", err)
	}
	must("zone", "disable", "z")
	must("zone", "delete", "z", "--cascade")
	cutOff(now)
}

// TestCommands_AllHaveHelp: no command without help, and none that needs a server for it.
func TestCommands_AllHaveHelp(t *testing.T) {
	for _, op := range api.NewRegistry().Operations() {
		var out bytes.Buffer
		a := &cli.App{Out: &out, Err: io.Discard, Getenv: func(string) string { return "" }}
		command := api.Command(op.Kind) + " " + op.Verb
		wants := append([]string{op.Summary, "shoalctl"}, flagsOf(op)...)
		switch op.Name() {
		case "release.upload", "release.create": // one command does both
			command, wants = "agent release add", []string{"shoalctl agent release add bin/shoal-agent", "--version", "--description", "--tag"}
		case "rollout.create":
			command = "agent rollout start"
		}
		if code := a.Run(t.Context(), append(strings.Fields(command), "--help")); code != 0 {
			t.Errorf("%s: exit code %d", op.Name(), code)
		}
		if op.Name() == "plan.create" {
			wants = []string{"shoalctl plan -f", "--file", "--name", "--description", "op: vm.create"} // its changes come from a file
		}
		for _, want := range wants {
			if !strings.Contains(out.String(), want) {
				t.Errorf("%s: the help lacks %q:\n%s", op.Name(), want, out.String())
			}
		}
	}
}

func flagsOf(op *api.Operation) []string {
	var out []string
	for _, p := range op.Params {
		if p.Arg == 0 && p.Secret {
			out = append(out, "--"+p.Flag+"-file")
		} else if p.Arg == 0 {
			out = append(out, "--"+p.Flag)
		}
	}
	return out
}
