package fleet_test

import (
	"context"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go/jetstream"

	"shoal/controller"
	"shoal/subjects"
)

// natsConfigEnv makes this binary a NATS server with that configuration.
const natsConfigEnv = "SHOAL_TEST_NATS_CONFIG"

// serveNATS is a NATS server until the process is killed.
func serveNATS(config string) error {
	o, err := server.ProcessConfigFile(config)
	if err != nil {
		return err
	}
	srv, err := server.NewServer(o)
	if err != nil {
		return err
	}
	srv.ConfigureLogger()
	srv.Start()
	srv.WaitForShutdown()
	return nil
}

// cluster is three NATS servers, each a process of its own.
type cluster struct {
	w       *world
	clients []string
	dirs    []string
	procs   []*exec.Cmd
}

// newCluster starts three servers with the configuration that shoal-controller nats-config prints, and a cluster block.
func newCluster(w *world) *cluster {
	c := &cluster{w: w}
	var routes []string
	for range 3 {
		c.clients = append(c.clients, freeAddr(w))
		routes = append(routes, freeAddr(w))
	}
	var urls []string
	for i, addr := range c.clients {
		urls = append(urls, "nats://"+addr)
		dir := filepath.Join(w.dir, fmt.Sprintf("n%d", i+1))
		w.must(os.MkdirAll(dir, 0o700))
		c.dirs = append(c.dirs, dir)
		text, err := controller.NATSConfig(filepath.Join(w.dir, "identity"), addr, filepath.Join(dir, "store"), filepath.Join(dir, "tls"), nil)
		w.must(err)
		text += fmt.Sprintf("\nserver_name: n%d\nlog_file: %q\ncluster {\n  name: shoal\n  listen: %q\n  routes: [%s]\n}\n",
			i+1, filepath.Join(dir, "log"), routes[i], "nats://"+strings.Join(routes, ", nats://"))
		w.must(os.WriteFile(filepath.Join(dir, "nats.conf"), []byte(text), 0o600))
		c.procs = append(c.procs, nil)
		c.start(i)
	}
	ca, err := w.id.CA()
	w.must(err)
	w.ca = filepath.Join(w.dir, "ca.pem")
	w.must(os.WriteFile(w.ca, []byte(ca.Bundle()), 0o600))
	w.url, w.replicas = strings.Join(urls, ","), 3
	w.t.Cleanup(func() {
		for i := range c.procs {
			c.kill(i)
		}
	})
	return c
}

// freeAddr is an address on loopback where nobody listens.
func freeAddr(w *world) string {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	w.must(err)
	defer l.Close()
	return l.Addr().String()
}

func (c *cluster) start(i int) {
	self, err := os.Executable()
	c.w.must(err)
	cmd := exec.Command(self)
	cmd.Env = append(os.Environ(), natsConfigEnv+"="+filepath.Join(c.dirs[i], "nats.conf"))
	cmd.Stderr = os.Stderr
	c.w.must(cmd.Start())
	c.procs[i] = cmd
}

// kill is kill -9.
func (c *cluster) kill(i int) {
	if p := c.procs[i]; p != nil {
		_ = p.Process.Kill()
		_ = p.Wait()
		c.procs[i] = nil
	}
}

// at is the server that leads a stream.
func (c *cluster) at(stream string) int {
	c.w.t.Helper()
	js, err := jetstream.New(c.w.ops)
	c.w.must(err)
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(100 * time.Millisecond) {
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		s, err := js.Stream(ctx, stream)
		cancel()
		if err == nil && s.CachedInfo().Cluster != nil && s.CachedInfo().Cluster.Leader != "" {
			var n int
			_, err := fmt.Sscanf(s.CachedInfo().Cluster.Leader, "n%d", &n)
			c.w.must(err)
			return n - 1
		}
		if time.Now().After(deadline) {
			c.w.t.Fatalf("stream %s has no leader: %v", stream, err)
		}
	}
}

// leader is the controller that leads.
func (c *cluster) leader() *process {
	c.w.t.Helper()
	js, err := jetstream.New(c.w.ops)
	c.w.must(err)
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(100 * time.Millisecond) {
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		kv, err := js.KeyValue(ctx, subjects.LeaseBucket)
		var e jetstream.KeyValueEntry
		if err == nil {
			e, err = kv.Get(ctx, subjects.LeaderKey)
		}
		cancel()
		if err == nil {
			var h struct {
				Name string `json:"name"`
			}
			c.w.must(json.Unmarshal(e.Value(), &h))
			if i := slices.IndexFunc(c.w.controllers, func(p *process) bool { return p.name == h.Name }); i >= 0 {
				return c.w.controllers[i]
			}
		}
		if time.Now().After(deadline) {
			c.w.t.Fatalf("nobody leads: %v", err)
		}
	}
}

// TestCluster runs controllers and agents on three NATS servers and kills what matters, one after the other, while somebody makes VMs: any
// server, the one that holds a host's bucket, with its disk too, and the leading controller. Nothing acknowledged is lost, buckets come back,
// and no agent ever stops a VM.
func TestCluster(t *testing.T) {
	if testing.Short() {
		t.Skip("takes a minute of real time")
	}
	t.Parallel()
	dir := t.TempDir()
	log := keptLog(t, "shoal-cluster.log")
	w := newWorld(t, rand.New(rand.NewPCG(1, 1)), dir, log)
	c := newCluster(w)
	w.populate(2, 4)

	var mu sync.Mutex
	made := map[string]string{}
	var gap time.Duration
	stop, done := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		last := time.Now()
		for i := 0; ; i++ {
			select {
			case <-stop:
				return
			case <-time.After(200 * time.Millisecond):
			}
			name := fmt.Sprintf("v%d", i)
			r, err := w.call("vm", "create", map[string]any{
				"name": name, "cpus": 1, "memory": "16MiB", "diskless": true, "networks": []map[string]any{{"l3": "net1"}}, "secgroups": []string{"g0"}, "stopped": i%4 != 0,
			}, time.Minute)
			if err != nil {
				w.logf("create %s: %v", name, err)
				continue
			}
			mu.Lock()
			made[id(r)] = name
			gap = max(gap, time.Since(last))
			mu.Unlock()
			last = time.Now()
		}
	}()
	// during runs a disturbance and tells how long nobody could make a VM.
	during := func(what string, f func()) {
		t.Helper()
		mu.Lock()
		gap = 0
		before := len(made)
		mu.Unlock()
		w.logf("%s", what)
		f()
		mu.Lock()
		defer mu.Unlock()
		t.Logf("%s: %d made, the longest wait was %s", what, len(made)-before, gap.Round(time.Millisecond))
	}
	settled := func(what string) {
		t.Helper()
		if why := w.settle(2 * time.Minute); why != "" {
			t.Fatalf("after %s: %s", what, why)
		}
	}
	desiredOf := func(n *node) string { return subjects.BucketStream(subjects.DesiredBucket(n.id)) }
	grown := func(n int) {
		t.Helper()
		mu.Lock()
		want := len(made) + n
		mu.Unlock()
		for deadline := time.Now().Add(time.Minute); ; time.Sleep(50 * time.Millisecond) {
			mu.Lock()
			have := len(made)
			mu.Unlock()
			if have >= want {
				return
			}
			if time.Now().After(deadline) {
				t.Fatalf("nobody can make VMs any more")
			}
		}
	}
	// standby waits until all controllers run: one that has just been started reads the journal first.
	standby := func() {
		t.Helper()
		for deadline := time.Now().Add(2 * time.Minute); w.running.Load() < int64(len(w.controllers)); time.Sleep(100 * time.Millisecond) {
			if time.Now().After(deadline) {
				t.Fatalf("%d of %d controllers run", w.running.Load(), len(w.controllers))
			}
		}
	}
	during("nothing", func() { grown(10) })

	leads := c.at("JOURNAL")
	during("the server that leads the journal is killed", func() {
		c.kill(leads)
		grown(10)
	})
	c.start(leads)
	during("it comes back", func() { grown(5) })

	n := w.hosts[0]
	holds := c.at(desiredOf(n))
	during("the server that holds a host's bucket is killed, and its disk is lost", func() {
		c.kill(holds)
		w.must(os.RemoveAll(filepath.Join(c.dirs[holds], "store")))
		grown(10)
		// While it is away, the host is told what is new.
		r, err := w.call("vm", "create", map[string]any{
			"name": "here", "cpus": 1, "memory": "16MiB", "diskless": true, "networks": []map[string]any{{"l3": "net1"}}, "secgroups": []string{"g0"}, "host": n.name,
		}, time.Minute)
		if err != nil {
			t.Fatal(err)
		}
		for deadline := time.Now().Add(90 * time.Second); !slices.Contains(n.host.Libvirt.Active(), id(r)); time.Sleep(100 * time.Millisecond) {
			if time.Now().After(deadline) {
				t.Fatal("the host whose bucket was lost is told nothing")
			}
		}
	})
	c.start(holds)
	during("it comes back with an empty disk", func() { grown(5) })

	standby()
	p := c.leader()
	during("the leading controller is killed", func() {
		w.kill(p)
		grown(10)
	})
	w.launch(p)

	for i := range 3 {
		during(fmt.Sprintf("server n%d is killed", i+1), func() {
			c.kill(i)
			grown(5)
			c.start(i)
			grown(5)
		})
	}
	close(stop)
	<-done
	settled("all of it")
	vms := map[string]bool{}
	for _, vm := range w.all("vm") {
		vms[vm["id"].(string)] = true
	}
	for id, name := range made {
		if !vms[id] {
			t.Errorf("vm %s was acknowledged and is lost", name)
		}
	}
	for _, n := range w.hosts {
		for _, call := range n.host.Libvirt.Calls() {
			if verb, vm, _ := strings.Cut(call, " "); verb == "destroy" || verb == "shutdown" || verb == "undefine" {
				t.Errorf("host %s: %s of VM %s, which nobody asked for", n.name, verb, made[vm])
			}
		}
	}
	for _, v := range w.violation {
		t.Error(v)
	}
	t.Logf("%d VMs", len(made))
}
