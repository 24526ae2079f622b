package controller_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/nats-io/nkeys"
	"github.com/rs/zerolog"

	"shoal/controller"
	"shoal/controller/api"
	"shoal/controller/backup"
	"shoal/controller/identity"
	"shoal/controller/resource"
	"shoal/desired"
	"shoal/subjects"
)

// running is a controller with its built-in NATS.
type running struct {
	t    *testing.T
	cfg  controller.Config
	url  string
	ctl  *api.Client
	reg  *api.Registry
	stop func()
}

func run(t *testing.T, data string, edit func(*controller.Config)) *running {
	t.Helper()
	r := &running{t: t, reg: api.NewRegistry(), cfg: controller.Config{
		Data: data, Name: "c1", Listen: "127.0.0.1:0", HTTP: "127.0.0.1:0", Version: "test", Log: zerolog.New(zerolog.NewTestWriter(t)).Level(zerolog.WarnLevel),
	}}
	if edit != nil {
		edit(&r.cfg)
	}
	ready, done := make(chan string, 1), make(chan error, 1)
	r.cfg.Ready = func(url string) { ready <- url }
	ctx, cancel := context.WithCancel(context.Background())
	go func() { done <- controller.Run(ctx, r.cfg) }()
	var once sync.Once
	r.stop = func() {
		once.Do(func() {
			if r.ctl != nil {
				r.ctl.Close()
			}
			cancel()
			if err := <-done; err != nil {
				t.Errorf("the controller ended with %v", err)
			}
		})
	}
	t.Cleanup(r.stop)
	select {
	case r.url = <-ready:
	case err := <-done:
		done <- nil
		t.Fatalf("the controller does not start: %v", err)
	}
	var err error
	if r.ctl, err = api.Dial(t.Context(), api.ClientConfig{Server: r.url, Creds: filepath.Join(data, controller.AdminCreds), CA: filepath.Join(data, controller.CABundle), Timeout: 10 * time.Second}); err != nil {
		t.Fatal(err)
	}
	r.until("the admin account is there", func() bool {
		_, err := r.try(resource.KindAccount, "get", map[string]any{"id": resource.AdminAccount})
		return err == nil
	})
	return r
}

// try makes a call; with wait its task is followed to the end.
func (r *running) try(kind resource.Kind, verb string, params map[string]any) (json.RawMessage, error) {
	r.t.Helper()
	op := r.reg.Find(kind, verb)
	if op == nil {
		r.t.Fatalf("there is no operation %s.%s", kind, verb)
	}
	if params == nil {
		params = map[string]any{}
	}
	body, err := json.Marshal(params)
	if err != nil {
		r.t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(r.t.Context(), 60*time.Second)
	defer cancel()
	raw, err := r.ctl.Call(ctx, op, body)
	if err != nil || !op.Task {
		return raw, err
	}
	var reply api.Reply
	if err := json.Unmarshal(raw, &reply); err != nil || reply.Task == "" || op.Kind == resource.KindVM {
		return raw, err
	}
	if !slices.Contains([]resource.Kind{resource.KindBackup, resource.KindSite, resource.KindAhead}, kind) {
		return raw, nil
	}
	t, err := r.ctl.Wait(ctx, r.reg, reply.Task, nil)
	if err == nil && t.State == resource.TaskFailed {
		err = t.Error
	}
	return raw, err
}

func (r *running) call(kind resource.Kind, verb string, params map[string]any) json.RawMessage {
	r.t.Helper()
	raw, err := r.try(kind, verb, params)
	if err != nil {
		r.t.Fatalf("%s.%s: %v", kind, verb, err)
	}
	return raw
}

// id is the id of what a call has made.
func id(t *testing.T, raw json.RawMessage) string {
	t.Helper()
	var reply struct{ Resource struct{ ID string } }
	if err := json.Unmarshal(raw, &reply); err != nil || reply.Resource.ID == "" {
		t.Fatalf("no resource in %s: %v", raw, err)
	}
	return reply.Resource.ID
}

// dump is every resource but tasks, without what is derived.
func (r *running) dump() map[string]string {
	r.t.Helper()
	out := map[string]string{}
	for _, k := range resource.Kinds() {
		if k == resource.KindTask {
			continue
		}
		var page api.Page
		if err := json.Unmarshal(r.call(k, "list", nil), &page); err != nil || page.Next != 0 {
			r.t.Fatalf("list %s: %v", k, err)
		}
		for _, raw := range page.Items {
			res, err := resource.Decode(k, raw)
			if err != nil {
				r.t.Fatal(err)
			}
			b, err := json.Marshal(res)
			if err != nil {
				r.t.Fatal(err)
			}
			out[string(k)+"."+res.Base().ID] = string(b)
		}
	}
	return out
}

func (r *running) until(what string, ok func() bool) {
	r.t.Helper()
	for deadline := time.Now().Add(30 * time.Second); !ok(); {
		if time.Now().After(deadline) {
			r.t.Fatalf("not reached: %s", what)
		}
		time.Sleep(20 * time.Millisecond)
	}
}

// listed is what the list operation of a kind answers.
func listed[T any](r *running, kind resource.Kind) []T {
	r.t.Helper()
	var page api.Page
	if err := json.Unmarshal(r.call(kind, "list", nil), &page); err != nil {
		r.t.Fatal(err)
	}
	var out []T
	for _, raw := range page.Items {
		var i T
		if err := json.Unmarshal(raw, &i); err != nil {
			r.t.Fatal(err)
		}
		out = append(out, i)
	}
	return out
}

func (r *running) backups() []backup.Info { return listed[backup.Info](r, resource.KindBackup) }

func (r *running) ahead() []api.AheadInfo { return listed[api.AheadInfo](r, resource.KindAhead) }

// passphrase makes a file with one.
func passphrase(t *testing.T) string {
	t.Helper()
	file := filepath.Join(t.TempDir(), "pass")
	if err := os.WriteFile(file, []byte("correct horse battery\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	return file
}

// TestBackup_UnderLoadAndRestore: a backup is made while callers write, verified, restored on an empty machine by one step, and all
// that was there up to its sequence is there again.
func TestBackup_UnderLoadAndRestore(t *testing.T) {
	dir, pass := t.TempDir(), passphrase(t)
	target := filepath.Join(dir, "backups")
	if err := os.Mkdir(target, 0o700); err != nil {
		t.Fatal(err)
	}
	r := run(t, filepath.Join(dir, "a"), func(c *controller.Config) {
		c.Backup = controller.BackupConfig{To: target, Seal: backup.SealConfig{PassphraseFile: pass}, Keep: 2}
	})
	for i := range 30 {
		r.call(resource.KindZone, "create", map[string]any{"name": fmt.Sprintf("before-%d", i)})
	}
	before := r.dump()
	stop, n := make(chan struct{}), 0
	var load sync.WaitGroup
	load.Go(func() {
		for {
			select {
			case <-stop:
				return
			default:
			}
			if _, err := r.try(resource.KindZone, "create", map[string]any{"name": fmt.Sprintf("during-%d", n)}); err != nil {
				t.Errorf("a call during the backup: %v", err)
				return
			}
			n++
		}
	})
	r.call(resource.KindBackup, "create", nil)
	close(stop)
	load.Wait()
	list := r.backups()
	if len(list) != 1 || list[0].State != backup.StateDone || !list[0].Encrypted || list[0].Seq < 30 || n == 0 {
		t.Fatalf("the backups are %+v after %d calls", list, n)
	}
	r.call(resource.KindBackup, "verify", map[string]any{"id": "latest"})
	if list := r.backups(); list[0].Verified.IsZero() || list[0].Contents.Resources[resource.KindZone] < 30 || list[0].Contents.Seq != list[0].Seq {
		t.Errorf("after it was verified: %+v", list[0])
	}
	all := r.dump()
	file := filepath.Join(target, list[0].Name)
	raw, err := os.ReadFile(file)
	if err != nil || !bytes.HasPrefix(raw, []byte("age-encryption.org/")) || bytes.Contains(raw, []byte("before-1")) {
		t.Errorf("the file is not encrypted: %v", err)
	}
	if entries, err := os.ReadDir(filepath.Join(dir, "a", "backup-scratch")); err != nil || len(entries) != 0 {
		t.Errorf("copies are left: %v, %v", entries, err)
	}
	r.stop()

	for name, c := range map[string]controller.RestoreConfig{
		"not empty":  {From: file, Data: filepath.Join(dir, "a"), Seal: backup.SealConfig{PassphraseFile: pass}},
		"no key":     {From: file, Data: filepath.Join(dir, "none")},
		"no backup":  {From: filepath.Join(dir, "a", "admin.creds"), Data: filepath.Join(dir, "none")},
		"not there":  {From: file + "x", Data: filepath.Join(dir, "none"), Seal: backup.SealConfig{PassphraseFile: pass}},
		"other keys": {From: file, Data: filepath.Join(dir, "none"), Seal: backup.SealConfig{PassphraseFile: pass}, Identity: otherKeys(t)},
	} {
		c.Log = zerolog.Nop()
		if _, err := controller.Restore(t.Context(), c); err == nil {
			t.Errorf("%s: it was restored", name)
		}
		if _, err := os.Stat(filepath.Join(dir, "none")); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("%s: something is left of it", name)
		}
	}
	damaged := filepath.Join(dir, "damaged")
	for at := range 3 {
		b := bytes.Clone(raw)
		b[len(b)*(at+1)/4] ^= 1
		if err := os.WriteFile(damaged, b, 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := controller.VerifyBackup(t.Context(), controller.RestoreConfig{From: damaged, Seal: backup.SealConfig{PassphraseFile: pass}, Log: zerolog.Nop()}, dir); err == nil {
			t.Errorf("damage at %d/4 was not noticed", at+1)
		}
	}

	data := filepath.Join(dir, "b")
	got, err := controller.Restore(t.Context(), controller.RestoreConfig{From: file, Data: data, Seal: backup.SealConfig{PassphraseFile: pass}, Log: zerolog.Nop()})
	if err != nil {
		t.Fatal(err)
	}
	if got.Manifest.Seq != list[0].Seq || len(got.Manifest.Keys) == 0 {
		t.Errorf("restored %+v", got.Manifest)
	}
	for _, e := range []string{"a", "b"} {
		if _, err := os.Stat(filepath.Join(dir, e, "identity", "operator.seed")); err != nil {
			t.Error(err)
		}
	}
	s := run(t, data, nil)
	want := map[string]string{}
	for k, v := range all {
		var m resource.Meta
		if err := json.Unmarshal([]byte(v), &m); err != nil {
			t.Fatal(err)
		}
		if m.Rev <= list[0].Seq {
			want[k] = v
		}
	}
	if len(want) < len(before) {
		t.Fatalf("%d resources are of before the backup, of %d", len(want), len(before))
	}
	if diff := cmp.Diff(want, s.dump()); diff != "" {
		t.Errorf("after the restore (-want +got):\n%s", diff)
	}
	// It goes on, and the next backup is of the same installation, and starts again on itself.
	s.call(resource.KindZone, "create", map[string]any{"name": "after"})
	now := s.dump()
	s.stop()
	again := run(t, data, func(c *controller.Config) {
		c.Backup = controller.BackupConfig{To: target, Seal: backup.SealConfig{PassphraseFile: pass}, Keep: 2}
	})
	if diff := cmp.Diff(now, again.dump()); diff != "" {
		t.Errorf("after a restart (-want +got):\n%s", diff)
	}
	for range 2 {
		time.Sleep(1100 * time.Millisecond) // ids of backups are seconds
		again.call(resource.KindBackup, "create", nil)
	}
	again.until("the oldest is gone", func() bool { l := again.backups(); return len(l) == 2 && l[1].ID != list[0].ID })
	if l := again.backups(); l[0].Seq < controller.DefaultAdvance {
		t.Errorf("the journal did not leap: %+v", l[0])
	}
	again.call(resource.KindBackup, "verify", map[string]any{"id": "latest"})
}

func otherKeys(t *testing.T) string {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "identity")
	if _, err := identity.Open(dir); err != nil {
		t.Fatal(err)
	}
	return dir
}

// TestBackup_Timer: the leader makes backups by itself, and does not forget when it restarts.
func TestBackup_Timer(t *testing.T) {
	dir := t.TempDir()
	target := filepath.Join(dir, "backups")
	if err := os.Mkdir(target, 0o700); err != nil {
		t.Fatal(err)
	}
	edit := func(every time.Duration) func(*controller.Config) {
		return func(c *controller.Config) {
			c.Backup = controller.BackupConfig{To: target, Seal: backup.SealConfig{Plain: true}, Every: every, Keep: 3}
		}
	}
	r := run(t, filepath.Join(dir, "a"), edit(time.Second))
	r.until("three backups", func() bool { return len(r.backups()) >= 3 })
	r.stop()
	before, err := os.ReadDir(target)
	if err != nil {
		t.Fatal(err)
	}
	s := run(t, filepath.Join(dir, "a"), edit(time.Hour))
	s.call(resource.KindZone, "create", map[string]any{"name": "z"})
	s.until("the list", func() bool { return len(s.backups()) == len(before) })
	if after, err := os.ReadDir(target); err != nil || len(after) != len(before) || len(after) > 3 {
		t.Errorf("%d backups became %d (%v)", len(before), len(after), err)
	}
}

// TestBackup_NowhereToGo: what can't work says so.
func TestBackup_NowhereToGo(t *testing.T) {
	r := run(t, filepath.Join(t.TempDir(), "a"), nil)
	if _, err := r.try(resource.KindBackup, "create", nil); err == nil || !strings.Contains(err.Error(), "no place for backups") {
		t.Errorf("without a target: %v", err)
	}
	r.stop()
	r = run(t, filepath.Join(t.TempDir(), "a"), func(c *controller.Config) {
		c.Backup = controller.BackupConfig{To: "/nonexistent/backups", Seal: backup.SealConfig{Plain: true}}
	})
	if _, err := r.try(resource.KindBackup, "create", nil); err == nil || !strings.Contains(err.Error(), "/nonexistent/backups") {
		t.Errorf("with a target that is not there: %v", err)
	}
}

// agent speaks an agent's part: it hands its document over, reports its generation, and takes documents as agents do, only newer
// ones. What agents themselves do is tested with them.
type agent struct {
	t    *testing.T
	id   string
	nc   *nats.Conn
	mu   sync.Mutex
	doc  desired.Document
	past []uint64
}

// newAgent connects a host with a credential for its key.
func newAgent(t *testing.T, r *running, token string, key nkeys.KeyPair, doc desired.Document) *agent {
	t.Helper()
	a := &agent{t: t, id: doc.Head.Host, doc: doc}
	nc, err := nats.Connect(r.url, nats.RootCAs(filepath.Join(r.cfg.Data, controller.CABundle)), nats.UserJWT(func() (string, error) { return token, nil }, key.Sign), nats.CustomInboxPrefix(subjects.Inbox(a.id)), nats.MaxReconnects(-1))
	if err != nil {
		t.Fatal(err)
	}
	a.nc = nc
	t.Cleanup(nc.Close)
	if _, err := nc.Subscribe(subjects.Agent(a.id, subjects.AgentVerbDocument), func(m *nats.Msg) {
		var req desired.DocumentRequest
		_ = json.Unmarshal(m.Data, &req)
		a.mu.Lock()
		p, err := a.doc.Page(req)
		a.mu.Unlock()
		b, jerr := json.Marshal(p)
		if err := errors.Join(err, jerr); err != nil {
			t.Errorf("page: %v", err)
		}
		_ = m.Respond(b)
	}); err != nil {
		t.Fatal(err)
	}
	a.report()
	return a
}

func (a *agent) report() {
	a.t.Helper()
	a.mu.Lock()
	facts, err := desired.Canonical(desired.HostFacts{Gen: a.doc.Head.Gen, Version: "test", Inventory: desired.Inventory{
		Hostname: "host-" + a.id[:4], Arch: "amd64", CPUs: 4, MemoryMiB: 16384, Virt: "kvm", Devices: []string{"eth1"},
		Addresses: map[string][]string{"eth0": {"10.77.0.11/24"}},
	}})
	gen := a.doc.Head.Gen
	a.mu.Unlock()
	if err != nil {
		a.t.Fatal(err)
	}
	st := desired.Status{Rev: gen, Phase: desired.PhaseReady, Facts: facts, Since: time.Now().UTC()}
	a.status(desired.Ref{Kind: desired.KindHost, ID: desired.HostStatusID}, st)
}

func (a *agent) status(ref desired.Ref, st desired.Status) {
	a.t.Helper()
	b, err := st.Encode()
	if err != nil {
		a.t.Fatal(err)
	}
	if _, err := a.nc.Request(subjects.BucketSubject(subjects.ObservedBucket, subjects.ObservedKey(a.id, string(ref.Kind), ref.ID)), b, 10*time.Second); err != nil {
		a.t.Fatal(err)
	}
}

// look takes the document that is in the host's bucket, if it is newer, and reports all of it as ready.
func (a *agent) look() bool {
	a.t.Helper()
	get := func(key string) []byte {
		m, err := a.nc.Request(subjects.DirectGet(subjects.DesiredBucket(a.id)), []byte(fmt.Sprintf(`{"last_by_subj":%q}`, subjects.BucketSubject(subjects.DesiredBucket(a.id), key))), time.Second)
		if err != nil || m.Header.Get("Status") != "" {
			return nil
		}
		return m.Data
	}
	head, err := desired.DecodeHead(get(subjects.HeadKey))
	if err != nil || head.Gen <= a.doc.Head.Gen {
		return false
	}
	doc := desired.Document{Head: head, Items: map[desired.Ref]desired.Item{}}
	for ref, hash := range head.Items {
		raw := get(ref.String())
		it, err := desired.DecodeItem(raw)
		if err != nil || desired.Hash(raw) != hash {
			return false
		}
		doc.Items[ref] = it
	}
	a.mu.Lock()
	a.doc = doc
	a.past = append(a.past, head.Gen)
	a.mu.Unlock()
	for ref, it := range doc.Items {
		st := desired.Status{Rev: it.Rev, Phase: desired.PhaseReady, Since: time.Now().UTC()}
		switch ref.Kind {
		case desired.KindPool:
			st.Facts = json.RawMessage(`{"total_bytes":1000000000000,"free_bytes":900000000000}`)
		case desired.KindDomain:
			st.Facts = json.RawMessage(`{"state":"running"}`)
		default: // no facts are asked for
		}
		a.status(ref, st)
	}
	a.report()
	return true
}

// site makes zone, cluster, storage, network and a host whose agent is connected.
func (r *running) site() (cluster string, key nkeys.KeyPair, a *agent) {
	r.t.Helper()
	key, err := nkeys.CreateUser()
	if err != nil {
		r.t.Fatal(err)
	}
	public, err := key.PublicKey()
	if err != nil {
		r.t.Fatal(err)
	}
	r.call(resource.KindZone, "create", map[string]any{"name": "z"})
	cluster = id(r.t, r.call(resource.KindCluster, "create", map[string]any{"name": "c", "zone": "z"}))
	raw := r.call(resource.KindHost, "create", map[string]any{"name": "h1", "cluster": "c", "public_key": public})
	var reply api.Reply
	if err := json.Unmarshal(raw, &reply); err != nil {
		r.t.Fatal(err)
	}
	r.call(resource.KindStorage, "create", map[string]any{"name": "s", "zone": "z", "type": "local", "path": "/srv/s", "clusters": []string{"c"}})
	r.call(resource.KindL2, "create", map[string]any{"name": "l2", "zone": "z", "type": "novlan", "device": "eth1", "clusters": []string{"c"}})
	r.call(resource.KindL3, "create", map[string]any{"name": "net", "l2": "l2"})
	r.call(resource.KindIPRange, "create", map[string]any{"name": "r", "network": "net", "start": "10.9.0.10", "end": "10.9.0.99", "prefix": 24, "gateway": "10.9.0.1"})
	a = newAgent(r.t, r, reply.JWT, key, desired.Document{Head: desired.Head{Host: id(r.t, raw)}})
	r.until("the host has its first document", a.look)
	return cluster, key, a
}

func (r *running) vm(name string) string {
	r.t.Helper()
	var out string
	r.until("VM "+name+" is created", func() bool {
		raw, err := r.try(resource.KindVM, "create", map[string]any{
			"name": name, "cpus": 1, "memory": "512MiB", "diskless": true, "networks": []map[string]any{{"l3": "net"}}, "disks": []map[string]any{{"size": "1GiB"}},
		})
		if err == nil {
			out = id(r.t, raw)
		} else if !strings.Contains(err.Error(), "no host can take") {
			r.t.Fatal(err)
		}
		return err == nil
	})
	return out
}

// TestRestore_HostIsAhead: an old backup is restored under a host that was told more since. It is not rolled back without a word,
// whatever happens meanwhile; what was decided is then done, and the VM that only it has survives both decisions.
func TestRestore_HostIsAhead(t *testing.T) {
	for _, decision := range []string{"adopt", "override"} {
		t.Run(decision, func(t *testing.T) {
			dir := t.TempDir()
			target := filepath.Join(dir, "backups")
			if err := os.Mkdir(target, 0o700); err != nil {
				t.Fatal(err)
			}
			r := run(t, filepath.Join(dir, "a"), func(c *controller.Config) {
				c.Backup = controller.BackupConfig{To: target, Seal: backup.SealConfig{Plain: true}}
			})
			_, key, a := r.site()
			old := r.vm("old")
			r.until("the host has it", func() bool { a.look(); _, ok := a.doc.Items[resource.DomainRef(old)]; return ok })
			r.call(resource.KindBackup, "create", nil)
			b := r.backups()[0]
			late := r.vm("late")
			r.call(resource.KindVM, "update", map[string]any{"id": old, "name": "renamed"})
			r.until("the host has both", func() bool {
				a.look()
				_, ok := a.doc.Items[resource.DomainRef(late)]
				return ok && strings.Contains(string(a.doc.Items[resource.DomainRef(old)].Spec), "renamed")
			})
			ledger := a.doc
			token := hostToken(t, filepath.Join(dir, "a", "identity"), a.id, key)
			a.nc.Close()
			r.stop()

			data := filepath.Join(dir, "b")
			got, err := controller.Restore(t.Context(), controller.RestoreConfig{From: filepath.Join(target, b.Name), Data: data, Log: zerolog.Nop()})
			if err != nil || got.Held != 1 {
				t.Fatalf("restored %+v, %v", got, err)
			}
			s := run(t, data, nil)
			if l := s.ahead(); len(l) != 1 || l[0].State != "absent" || !l[0].Known {
				t.Fatalf("before the host is back: %+v", l)
			}
			if _, err := s.try(resource.KindAhead, decision, map[string]any{"host": "h1"}); err == nil || !strings.Contains(err.Error(), "not connected") {
				t.Errorf("decided about a host of which nobody knows what it has: %v", err)
			}
			a = newAgent(t, s, token, key, ledger)
			s.until("the host is seen to be ahead", func() bool { l := s.ahead(); return len(l) == 1 && l[0].State == "ahead" })
			l := s.ahead()[0]
			if l.OnlyHost != 2 || l.Gen != ledger.Head.Gen || l.Seq != b.Seq {
				t.Errorf("what differs: %+v", l)
			}
			// The journal goes on, and the host is told nothing.
			for i := range 20 {
				s.call(resource.KindZone, "create", map[string]any{"name": fmt.Sprintf("z%d", i)})
			}
			if _, err := s.try(resource.KindVM, "create", map[string]any{"name": "x", "cpus": 1, "memory": "512MiB", "diskless": true, "networks": []map[string]any{{"l3": "net"}}}); err == nil || !strings.Contains(err.Error(), "held back") {
				t.Errorf("something is placed on it: %v", err)
			}
			if a.look() {
				t.Fatal("a host that is ahead was told something before anybody decided")
			}
			s.call(resource.KindAhead, decision, map[string]any{"host": "h1"})
			s.until("the host is told on", a.look)
			if len(s.ahead()) != 0 {
				t.Errorf("it is still held: %+v", s.ahead())
			}
			for name, vm := range map[string]string{"old": old, "late": late} {
				if _, ok := a.doc.Items[resource.DomainRef(vm)]; !ok {
					t.Errorf("VM %s is not in the host's document any more", name)
				}
			}
			var vm resource.VM
			if err := json.Unmarshal(s.call(resource.KindVM, "get", map[string]any{"id": old}), &vm); err != nil {
				t.Fatal(err)
			}
			if want := map[string]string{"adopt": "renamed", "override": "old"}[decision]; vm.Name != want {
				t.Errorf("the VM that both know is called %s, want %s", vm.Name, want)
			}
			if decision == "adopt" {
				for ref, it := range ledger.Items {
					if !a.doc.Items[ref].SameContent(it) {
						t.Errorf("%s was %s and is %s: a guest may be touched", ref, it.Spec, a.doc.Items[ref].Spec)
					}
				}
			}
			if g := a.past; len(g) == 0 || g[0] <= ledger.Head.Gen {
				t.Errorf("generations %v after %d", g, ledger.Head.Gen)
			}
		})
	}
}

// TestRestore_HostIsNotAhead: a host that was told nothing since goes on by itself.
func TestRestore_HostIsNotAhead(t *testing.T) {
	dir := t.TempDir()
	target := filepath.Join(dir, "backups")
	if err := os.Mkdir(target, 0o700); err != nil {
		t.Fatal(err)
	}
	r := run(t, filepath.Join(dir, "a"), func(c *controller.Config) {
		c.Backup = controller.BackupConfig{To: target, Seal: backup.SealConfig{Plain: true}}
	})
	_, key, a := r.site()
	vm := r.vm("vm")
	r.until("the host has it", func() bool { a.look(); _, ok := a.doc.Items[resource.DomainRef(vm)]; return ok })
	r.call(resource.KindBackup, "create", nil)
	b := r.backups()[0]
	token := hostToken(t, filepath.Join(dir, "a", "identity"), a.id, key)
	a.nc.Close()
	r.stop()
	data := filepath.Join(dir, "b")
	if _, err := controller.Restore(t.Context(), controller.RestoreConfig{From: filepath.Join(target, b.Name), Data: data, Log: zerolog.Nop()}); err != nil {
		t.Fatal(err)
	}
	s := run(t, data, nil)
	newAgent(t, s, token, key, a.doc)
	s.until("nobody is held", func() bool { return len(s.ahead()) == 0 })
}

// TestRebuild_FromLedgers: a controller that has lost all but its keys learns from its hosts what there was: what they were told,
// and what that was made from. Of hosts that an older controller told nothing of it, an administrator has to say where they belong.
func TestRebuild_FromLedgers(t *testing.T) {
	for name, old := range map[string]bool{"origins": false, "older documents": true} {
		t.Run(name, func(t *testing.T) { rebuildFromLedgers(t, old) })
	}
}

func rebuildFromLedgers(t *testing.T, old bool) {
	dir := t.TempDir()
	r := run(t, filepath.Join(dir, "a"), nil)
	_, key, a := r.site()
	r.call(resource.KindAccount, "create", map[string]any{"name": "acme", "password": "lost with the journal"})
	vm := r.vm("precious")
	r.call(resource.KindVM, "update", map[string]any{"id": vm, "tags": []string{"prod"}, "description": "the shop"})
	r.call(resource.KindVM, "chown", map[string]any{"id": vm, "account": "acme"})
	var was resource.VM
	if err := json.Unmarshal(r.call(resource.KindVM, "get", map[string]any{"id": vm}), &was); err != nil || was.Owner == resource.AdminAccount {
		t.Fatalf("the VM is %+v, %v", was, err)
	}
	r.until("the host has it", func() bool {
		a.look()
		_, ok := a.doc.Items[desired.Ref{Kind: desired.KindOrigin, ID: was.Owner}]
		return ok
	})
	ledger := a.doc
	if old {
		for ref := range ledger.Items {
			if ref.Kind == desired.KindOrigin {
				delete(ledger.Items, ref)
				delete(ledger.Head.Items, ref)
			}
		}
	}
	keys := filepath.Join(dir, "a", "identity")
	token := hostToken(t, keys, a.id, key)
	a.nc.Close()
	r.stop()
	data := filepath.Join(dir, "b")
	if err := controller.Rebuild(t.Context(), controller.RestoreConfig{Data: data, Identity: keys, Log: zerolog.Nop()}); err != nil {
		t.Fatal(err)
	}
	s := run(t, data, func(c *controller.Config) { c.Identity = keys })
	a = newAgent(t, s, token, key, ledger)
	s.until("the host is seen", func() bool { l := s.ahead(); return len(l) == 1 && l[0].State == "ahead" && l[0].Key != "" })
	l := s.ahead()[0]
	if l.Known || l.ID != a.id || l.OnlyHost != 2 || strings.Contains(l.Remedy, "--key "+l.Key) != old {
		t.Errorf("the host is shown as %+v", l)
	}
	if old {
		s.call(resource.KindZone, "create", map[string]any{"name": "z"})
		s.call(resource.KindCluster, "create", map[string]any{"name": "c", "zone": "z"})
		s.call(resource.KindAhead, "adopt", map[string]any{"host": a.id, "cluster": "c", "name": "h1", "key": l.Key})
	} else {
		s.call(resource.KindAhead, "adopt", map[string]any{"all": true})
	}
	s.until("the host is told on", a.look)
	for ref, it := range ledger.Items {
		if !a.doc.Items[ref].SameContent(it) {
			t.Errorf("%s was %s and is %s", ref, it.Spec, a.doc.Items[ref].Spec)
		}
	}
	for ref := range a.doc.Items {
		if _, ok := ledger.Items[ref]; !ok && ref.Kind != desired.KindOrigin {
			t.Errorf("%s is new", ref)
		}
	}
	var got resource.VM
	if err := json.Unmarshal(s.call(resource.KindVM, "get", map[string]any{"id": "precious"}), &got); err != nil || got.ID != vm {
		t.Errorf("the VM is %+v, %v", got, err)
	}
	if old {
		return
	}
	if got.Owner != was.Owner || got.Description != "the shop" || !slices.Equal(got.Tags, was.Tags) || got.ImageID != was.ImageID || got.OfferingID != was.OfferingID ||
		got.ZoneID != was.ZoneID || got.ClusterID != was.ClusterID {
		t.Errorf("the VM was %+v and is %+v", was, got)
	}
	var acme resource.Account
	if err := json.Unmarshal(s.call(resource.KindAccount, "get", map[string]any{"id": "acme"}), &acme); err != nil || acme.ID != was.Owner {
		t.Errorf("the account is %+v, %v", acme, err)
	}
	// Its password is not known any more, and has to be set.
	s.call(resource.KindAccount, "password", map[string]any{"id": "acme", "new_password": "a new one for acme"})
}

// hostToken signs a host's credential, as it has it since it was added.
func hostToken(t *testing.T, keys, host string, key nkeys.KeyPair) string {
	t.Helper()
	i, err := identity.Open(keys)
	if err != nil {
		t.Fatal(err)
	}
	public, err := key.PublicKey()
	if err != nil {
		t.Fatal(err)
	}
	token, err := i.IssueUser(identity.RoleAgent, host, public, 0)
	if err != nil {
		t.Fatal(err)
	}
	return token
}

// TestCompact_AndUsage: the journal is compacted while the installation runs; it starts from what is left, and says what takes space.
func TestCompact_AndUsage(t *testing.T) {
	dir := t.TempDir()
	r := run(t, filepath.Join(dir, "a"), nil)
	zone := id(t, r.call(resource.KindZone, "create", map[string]any{"name": "z"}))
	for i := range 60 {
		r.call(resource.KindZone, "update", map[string]any{"id": zone, "description": strings.Repeat("x", 500) + fmt.Sprint(i)})
	}
	usage := func(r *running) map[string]api.SiteUsage {
		var page api.Page
		if err := json.Unmarshal(r.call(resource.KindSite, "list", nil), &page); err != nil {
			t.Fatal(err)
		}
		out := map[string]api.SiteUsage{}
		for _, raw := range page.Items {
			var u api.SiteUsage
			if err := json.Unmarshal(raw, &u); err != nil {
				t.Fatal(err)
			}
			out[u.What] = u
		}
		return out
	}
	before := usage(r)[subjects.JournalStream]
	if before.Messages < 61 || before.Bytes == 0 || before.PerDay == 0 || len(before.Frees) != 1 || before.Frees[0].Bytes == 0 {
		t.Errorf("the journal before: %+v", before)
	}
	want := r.dump()
	r.call(resource.KindSite, "compact", map[string]any{"keep": "720h"})
	if u := usage(r)[subjects.JournalStream]; u.Messages < before.Messages {
		t.Errorf("history that is to be kept went: %+v", u)
	}
	r.call(resource.KindSite, "compact", nil)
	after := usage(r)[subjects.JournalStream]
	if after.Messages > 12 || after.Bytes >= before.Bytes {
		t.Errorf("the journal after: %+v, before %+v", after, before)
	}
	if diff := cmp.Diff(want, r.dump()); diff != "" {
		t.Errorf("compacting changed resources (-want +got):\n%s", diff)
	}
	r.stop()
	// From the journal alone: the projection is taken away.
	s := run(t, filepath.Join(dir, "a"), nil)
	if diff := cmp.Diff(want, s.dump()); diff != "" {
		t.Errorf("after a restart (-want +got):\n%s", diff)
	}
	nc, err := nats.Connect(s.url, nats.RootCAs(filepath.Join(dir, "a", controller.CABundle)), nats.UserCredentials(filepath.Join(dir, "a", controller.AdminCreds)), nats.CustomInboxPrefix(subjects.Inbox("admin")))
	if err != nil {
		t.Fatal(err)
	}
	defer nc.Close()
	js, err := jetstream.New(nc)
	if err != nil {
		t.Fatal(err)
	}
	st, err := js.Stream(t.Context(), subjects.JournalStream)
	if err != nil || st.CachedInfo().State.FirstSeq < 60 {
		t.Errorf("the journal's first message is %d, %v", st.CachedInfo().State.FirstSeq, err)
	}
}

// TestCompact_OldJournal: a journal from which nothing can ever be purged is not made larger in vain, and becomes one that can be
// compacted by a backup and its restoration, as the refusal says.
func TestCompact_OldJournal(t *testing.T) {
	dir, pass := t.TempDir(), passphrase(t)
	target := filepath.Join(dir, "backups")
	if err := os.Mkdir(target, 0o700); err != nil {
		t.Fatal(err)
	}
	edit := func(c *controller.Config) {
		c.Backup = controller.BackupConfig{To: target, Seal: backup.SealConfig{PassphraseFile: pass}}
	}
	r := run(t, filepath.Join(dir, "a"), edit)
	zone := id(t, r.call(resource.KindZone, "create", map[string]any{"name": "z"}))
	for i := range 30 {
		r.call(resource.KindZone, "update", map[string]any{"id": zone, "description": fmt.Sprint(i)})
	}
	journal := func(r *running, data string) jetstream.Stream {
		key, err := nkeys.CreateUser()
		if err != nil {
			t.Fatal(err)
		}
		public, err := key.PublicKey()
		if err != nil {
			t.Fatal(err)
		}
		keys, err := identity.Open(filepath.Join(dir, data, "identity"))
		if err != nil {
			t.Fatal(err)
		}
		token, err := keys.IssueUser(identity.RoleController, "test", public, 0)
		if err != nil {
			t.Fatal(err)
		}
		nc, err := nats.Connect(r.url, nats.RootCAs(filepath.Join(dir, data, controller.CABundle)), nats.UserJWT(func() (string, error) { return token, nil }, key.Sign))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(nc.Close)
		js, err := jetstream.New(nc)
		if err != nil {
			t.Fatal(err)
		}
		st, err := js.Stream(t.Context(), subjects.JournalStream)
		if err != nil {
			t.Fatal(err)
		}
		if data == "a" { // as an earlier version made it
			cfg := st.CachedInfo().Config
			cfg.DenyPurge = true
			if st, err = js.UpdateStream(t.Context(), cfg); err != nil {
				t.Fatal(err)
			}
		}
		return st
	}
	old := journal(r, "a")
	before := old.CachedInfo().State.Msgs
	_, err := r.try(resource.KindSite, "compact", nil)
	var e *resource.Error
	if !errors.As(err, &e) || e.Code != resource.CodeConflict || !strings.Contains(e.Message, "denied for good") || !strings.Contains(e.Remedy, "shoal-controller restore") {
		t.Fatalf("compacting it: %#v", err)
	}
	info, err := old.Info(t.Context())
	if err != nil || info.State.Msgs > before+4 || info.State.FirstSeq != 1 { // the task and its end
		t.Errorf("the refusal left %d messages of %d, from %d, %v", info.State.Msgs, before, info.State.FirstSeq, err)
	}
	for _, u := range listed[api.SiteUsage](r, resource.KindSite) {
		if u.What == subjects.JournalStream && (len(u.Frees) > 0 || !strings.Contains(u.About, "can't be compacted")) {
			t.Errorf("its usage is %+v", u)
		}
	}
	r.call(resource.KindBackup, "create", nil)
	want := r.dump()
	file := filepath.Join(target, r.backups()[0].Name)
	r.stop()
	if _, err := controller.Restore(t.Context(), controller.RestoreConfig{
		From: file, Data: filepath.Join(dir, "b"), Seal: backup.SealConfig{PassphraseFile: pass}, Log: zerolog.Nop(),
	}); err != nil {
		t.Fatal(err)
	}
	s := run(t, filepath.Join(dir, "b"), edit)
	s.call(resource.KindSite, "compact", nil)
	if first := journal(s, "b").CachedInfo().State.FirstSeq; first < before {
		t.Errorf("the journal still begins with message %d", first)
	}
	if diff := cmp.Diff(want, s.dump()); diff != "" {
		t.Errorf("compacting changed resources (-want +got):\n%s", diff)
	}
}

// TestRestore_External: the streams go into an external NATS, which must know the backup's keys first.
func TestRestore_External(t *testing.T) {
	dir := t.TempDir()
	target := filepath.Join(dir, "backups")
	if err := os.Mkdir(target, 0o700); err != nil {
		t.Fatal(err)
	}
	r := run(t, filepath.Join(dir, "a"), func(c *controller.Config) {
		c.Backup = controller.BackupConfig{To: target, Seal: backup.SealConfig{Plain: true}}
	})
	for i := range 5 {
		r.call(resource.KindZone, "create", map[string]any{"name": fmt.Sprintf("z%d", i)})
	}
	want := r.dump()
	r.call(resource.KindBackup, "create", nil)
	file := filepath.Join(target, r.backups()[0].Name)
	r.stop()
	keys := filepath.Join(dir, "keys", "identity")
	cfg := controller.RestoreConfig{From: file, Identity: keys, Data: filepath.Join(dir, "keys-only"), KeysOnly: true, Log: zerolog.Nop()}
	if _, err := controller.Restore(t.Context(), cfg); err != nil {
		t.Fatal(err)
	}
	cfg.KeysOnly, cfg.Data, cfg.NATSURL = false, filepath.Join(dir, "b"), external(t, keys)
	if _, err := controller.Restore(t.Context(), cfg); err != nil {
		t.Fatal(err)
	}
	again := cfg
	again.Data = filepath.Join(dir, "c")
	if _, err := controller.Restore(t.Context(), again); err == nil || !strings.Contains(err.Error(), "has one already") {
		t.Errorf("over streams that are there: %v", err)
	}
	s := run(t, cfg.Data, func(c *controller.Config) { c.Identity, c.NATSURL = keys, cfg.NATSURL })
	if diff := cmp.Diff(want, s.dump()); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}
