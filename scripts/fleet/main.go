// Command fleet measures a controller with a fleet: a real controller with its NATS server in one process, and in this process as many
// production agents as one likes, each with a connection of its own, on models of hosts. It prints a table.
//
// It needs bin/shoal-controller; ./scripts/task bench-fleet builds it. Data goes below --dir, best into memory: hundreds of agents on one
// disk measure the disk.
package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"net"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/nats-io/jwt/v2"
	"github.com/nats-io/nkeys"
	"github.com/rs/zerolog"

	"shoal/agent"
	"shoal/agent/sim/fleet"
	"shoal/controller/api"
	"shoal/controller/resource"
)

// clusterSize is how many hosts share a cluster and a network.
const clusterSize = 20

type bench struct {
	dir, binary string
	hosts, vms  int
	callers     int
	url         string
	http        string
	controller  *exec.Cmd
	client      *api.Client
	registry    *api.Registry
	models      []*fleet.Host
	rows        [][2]string
	agents      sync.WaitGroup
	listen      string
}

func main() {
	b := &bench{registry: api.NewRegistry()}
	flag.IntVar(&b.hosts, "hosts", 100, "number of hosts")
	flag.IntVar(&b.vms, "vms", 20, "VMs for each host")
	flag.IntVar(&b.callers, "callers", 256, "callers that make VMs at once")
	flag.StringVar(&b.dir, "dir", "/dev/shm/shoal-fleet", "where everything is kept; it is removed before and after")
	flag.StringVar(&b.binary, "controller", "bin/shoal-controller", "the controller's binary")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := b.run(ctx); err != nil {
		fmt.Fprintln(os.Stderr, "fleet:", err)
		stop()
		os.Exit(1)
	}
}

func (b *bench) row(what, format string, args ...any) {
	b.rows = append(b.rows, [2]string{what, fmt.Sprintf(format, args...)})
	fmt.Fprintf(os.Stderr, "%-70s %s\n", what, fmt.Sprintf(format, args...))
}

func (b *bench) run(ctx context.Context) (err error) {
	if err := os.RemoveAll(b.dir); err != nil {
		return err
	}
	if err := os.MkdirAll(b.dir, 0o755); err != nil {
		return err
	}
	agents, stop := context.WithCancel(ctx)
	defer func() {
		stop()
		b.agents.Wait()
		b.kill()
		err = errors.Join(err, os.RemoveAll(b.dir))
	}()
	if b.listen, err = free(ctx); err != nil {
		return err
	}
	if b.http, err = free(ctx); err != nil {
		return err
	}
	b.url = "nats://" + b.listen
	if err := b.start(ctx); err != nil {
		return err
	}
	for _, step := range []func(ctx context.Context) error{
		b.site, func(ctx context.Context) error { return b.connect(ctx, agents) }, b.create, b.read, b.idle, b.restart,
	} {
		if err := step(ctx); err != nil {
			return err
		}
	}
	var table strings.Builder
	fmt.Fprintf(&table, "| %d hosts, %d VMs | |\n|---|---|\n", b.hosts, b.hosts*b.vms)
	for _, r := range b.rows {
		fmt.Fprintf(&table, "| %s | %s |\n", r[0], r[1])
	}
	_, err = os.Stdout.WriteString(table.String())
	return err
}

// free is an address on loopback where nobody listens.
func free(ctx context.Context) (string, error) {
	l, err := (&net.ListenConfig{}).Listen(ctx, "tcp", "127.0.0.1:0")
	if err != nil {
		return "", err
	}
	defer l.Close()
	return l.Addr().String(), nil
}

// start runs the controller and waits until it answers.
func (b *bench) start(ctx context.Context) error {
	log, err := os.OpenFile(filepath.Join(b.dir, "controller.log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer log.Close()
	data := filepath.Join(b.dir, "controller")
	cmd := exec.Command(b.binary, "--name", "bench", "--data", data, "--listen", b.listen, "--http", b.http, "--log-level", "warn") //nolint:noctx // it outlives ctx by its clean end
	cmd.Stderr = log
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("start controller: %w", err)
	}
	b.controller = cmd
	for deadline := time.Now().Add(2 * time.Minute); ; {
		if b.client == nil {
			b.client, err = api.Dial(ctx, api.ClientConfig{Server: b.url, Creds: filepath.Join(data, "admin.creds"), CA: b.ca(), Timeout: time.Second})
		}
		if b.client != nil {
			if _, err = b.call(ctx, resource.KindZone, "list", nil); err == nil {
				return nil
			}
		}
		if ctx.Err() != nil || time.Now().After(deadline) {
			text, _ := os.ReadFile(log.Name())
			return fmt.Errorf("the controller does not answer: %w\n%s", err, tail(text))
		}
		wait(ctx, 20*time.Millisecond)
	}
}

// ca is the file with the authority that the controller made.
func (b *bench) ca() string { return filepath.Join(b.dir, "controller", "ca.pem") }

func tail(b []byte) []byte { return b[max(0, len(b)-2000):] }

func wait(ctx context.Context, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
	case <-t.C:
	}
}

func (b *bench) kill() {
	if b.controller != nil {
		_ = b.controller.Process.Kill()
		_ = b.controller.Wait()
		b.controller = nil
	}
}

func (b *bench) call(ctx context.Context, kind resource.Kind, verb string, body map[string]any) (json.RawMessage, error) {
	if body == nil {
		body = map[string]any{}
	}
	raw, err := json.Marshal(body)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	answer, err := b.client.Call(ctx, b.registry.Find(kind, verb), raw)
	if err != nil {
		return nil, fmt.Errorf("%s %s: %w", kind, verb, err)
	}
	return answer, nil
}

// all runs f for 0 to n-1 by a number of callers.
func all(callers, n int, f func(i int) error) error {
	var next atomic.Int64
	errs := make(chan error, callers)
	for range callers {
		go func() {
			for {
				i := int(next.Add(1)) - 1
				if i >= n {
					errs <- nil
					return
				}
				if err := f(i); err != nil {
					errs <- err
					return
				}
			}
		}()
	}
	var err error
	for range callers {
		err = errors.Join(err, <-errs)
	}
	return err
}

func name(prefix string, i int) string { return prefix + strconv.Itoa(i) }

// site makes zone, clusters and networks.
func (b *bench) site(ctx context.Context) error {
	do := func(kind resource.Kind, body map[string]any) error {
		_, err := b.call(ctx, kind, "create", body)
		return err
	}
	if err := do("zone", map[string]any{"name": "z"}); err != nil {
		return err
	}
	if err := do("secgroup", map[string]any{"name": "g"}); err != nil {
		return err
	}
	for i := range (b.hosts + clusterSize - 1) / clusterSize {
		err := errors.Join(
			do("cluster", map[string]any{"name": name("c", i), "zone": "z", "cpu_overcommit": 100}),
			do("l2", map[string]any{"name": name("l", i), "zone": "z", "type": "vlan", "device": "eth0", "vlan": i + 1, "clusters": []string{name("c", i)}}),
			do("l3", map[string]any{"name": name("n", i), "l2": name("l", i)}),
			do("iprange", map[string]any{"name": name("r", i), "network": name("n", i), "cidr": fmt.Sprintf("10.%d.%d.0/22", i/64+1, i%64*4)}),
		)
		if err != nil {
			return err
		}
	}
	return nil
}

// connect adds the hosts, and then starts all agents at once.
func (b *bench) connect(ctx, agents context.Context) error {
	creds := make([]string, b.hosts)
	b.models = make([]*fleet.Host, b.hosts)
	begin := time.Now()
	err := all(64, b.hosts, func(i int) error {
		pair, err := nkeys.CreateUser()
		if err != nil {
			return err
		}
		public, err := pair.PublicKey()
		if err != nil {
			return err
		}
		raw, err := b.call(ctx, "host", "create", map[string]any{"name": name("h", i), "cluster": name("c", i/clusterSize), "public_key": public})
		if err != nil {
			return err
		}
		var r api.Reply
		if err := json.Unmarshal(raw, &r); err != nil {
			return err
		}
		seed, err := pair.Seed()
		if err != nil {
			return err
		}
		file, err := jwt.FormatUserConfig(r.JWT, seed)
		if err != nil {
			return err
		}
		creds[i] = filepath.Join(b.dir, name("h", i)+".creds")
		return os.WriteFile(creds[i], file, 0o600)
	})
	if err != nil {
		return err
	}
	b.row("hosts added, each with a key of its own", "%.0f/s", float64(b.hosts)/time.Since(begin).Seconds())
	runtime.GC()
	before := memory(os.Getpid())
	begin = time.Now()
	for i := range b.hosts {
		b.models[i] = fleet.NewHost(name("h", i), fmt.Sprintf("10.%d.%d.1/8", 128+i/256, i%256), fleet.Size{CPUs: 64, MemoryMiB: 1 << 18, DiskBytes: 1 << 44})
		machine := b.models[i].Machine(nil)
		b.agents.Go(func() {
			err := agent.Run(agents, agent.Config{NATSURL: b.url, Creds: creds[i], CA: b.ca(), Data: filepath.Join(b.dir, name("h", i)), Version: "bench", Log: zerolog.Nop(), Machine: &machine})
			if err != nil {
				fmt.Fprintf(os.Stderr, "agent %d: %v\n", i, err)
			}
		})
	}
	if err := b.connected(ctx); err != nil {
		return err
	}
	b.row("all agents started at once: until all are connected and have told what they are", "%.1f s", time.Since(begin).Seconds())
	b.row("an agent without VMs (model of its host included)", "%.0f KiB, %d goroutines", float64(memory(os.Getpid())-before)/1024/float64(b.hosts), runtime.NumGoroutine()/b.hosts)
	return nil
}

func (b *bench) connected(ctx context.Context) error {
	for deadline := time.Now().Add(5 * time.Minute); ; wait(ctx, 100*time.Millisecond) {
		n, err := b.count(ctx, "host", "status.state=Connected")
		if err == nil && n == b.hosts {
			return nil
		}
		if ctx.Err() != nil || time.Now().After(deadline) {
			return fmt.Errorf("%d of %d hosts are connected: %w", n, b.hosts, errors.Join(err, ctx.Err()))
		}
	}
}

func (b *bench) count(ctx context.Context, kind resource.Kind, where string) (int, error) {
	raw, err := b.call(ctx, kind, "list", map[string]any{"where": []string{where}, "count": true})
	if err != nil {
		return 0, err
	}
	var page struct {
		Total int `json:"total"`
	}
	return page.Total, json.Unmarshal(raw, &page)
}

// running is how many guests run on all models.
func (b *bench) running() (n int) {
	for _, h := range b.models {
		n += len(h.Libvirt.Active())
	}
	return n
}

// create makes all VMs at full speed.
func (b *bench) create(ctx context.Context) error {
	n := b.hosts * b.vms
	took := make([]time.Duration, n)
	begin := time.Now()
	cpu := busy(b.controller.Process.Pid)
	err := all(b.callers, n, func(i int) error {
		start := time.Now()
		cluster := i % ((b.hosts + clusterSize - 1) / clusterSize)
		_, err := b.call(ctx, "vm", "create", map[string]any{
			"name": name("v", i), "cpus": 1, "memory": "64MiB", "diskless": true, "cluster": name("c", cluster),
			"networks": []map[string]any{{"l3": name("n", cluster)}},
		})
		took[i] = time.Since(start)
		return err
	})
	if err != nil {
		return err
	}
	acked := time.Since(begin)
	for deadline := time.Now().Add(10 * time.Minute); b.running() < n; wait(ctx, 50*time.Millisecond) {
		if ctx.Err() != nil || time.Now().After(deadline) {
			return fmt.Errorf("%d of %d VMs run", b.running(), n)
		}
	}
	slices.Sort(took)
	b.row(fmt.Sprintf("VMs made by %d callers, each placed, with NIC and address: acknowledged", b.callers), "%.0f/s, p50 %s, p99 %s",
		float64(n)/acked.Seconds(), took[n/2].Round(time.Millisecond), took[n*99/100].Round(time.Millisecond))
	b.row("... until all of them run on their hosts", "%.1f s after the first call", time.Since(begin).Seconds())
	b.row("... the controller's part of that", "%.1f s of CPU", (busy(b.controller.Process.Pid) - cpu).Seconds())
	return nil
}

// read measures lists and gets.
func (b *bench) read(ctx context.Context) error {
	var lists, gets []time.Duration
	for range 20 {
		start := time.Now()
		left := min(10000, b.hosts*b.vms)
		for offset := 0; offset < left; {
			raw, err := b.call(ctx, "vm", "list", map[string]any{"limit": 1000, "offset": offset, "fields": []string{"name", "status.state", "status.host"}})
			if err != nil {
				return err
			}
			var page api.Page
			if err := json.Unmarshal(raw, &page); err != nil || len(page.Items) == 0 {
				return fmt.Errorf("list: %d items: %w", len(page.Items), err)
			}
			offset += len(page.Items)
		}
		lists = append(lists, time.Since(start))
	}
	for i := range 500 {
		start := time.Now()
		if _, err := b.call(ctx, "vm", "get", map[string]any{"id": name("v", i%(b.hosts*b.vms))}); err != nil {
			return err
		}
		gets = append(gets, time.Since(start))
	}
	slices.Sort(lists)
	slices.Sort(gets)
	b.row(fmt.Sprintf("list of %d VMs with state and host, in pages of 1,000", min(10000, b.hosts*b.vms)), "p95 %s", lists[len(lists)*95/100].Round(time.Millisecond))
	b.row("get of one VM by its name", "p50 %s, p99 %s", gets[len(gets)/2].Round(10*time.Microsecond), gets[len(gets)*99/100].Round(10*time.Microsecond))
	return nil
}

// idle measures what nothing costs.
func (b *bench) idle(ctx context.Context) error {
	wait(ctx, 10*time.Second)
	const period = 30 * time.Second
	controller, self := busy(b.controller.Process.Pid), busy(os.Getpid())
	wait(ctx, period)
	controller, self = busy(b.controller.Process.Pid)-controller, busy(os.Getpid())-self
	b.row("idle controller, NATS inside", "%.1f %% of a core, %d MiB", 100*controller.Seconds()/period.Seconds(), memory(b.controller.Process.Pid)>>20)
	b.row(fmt.Sprintf("idle agent with %d VMs (model included)", b.vms), "%.3f %% of a core, %d KiB", 100*self.Seconds()/period.Seconds()/float64(b.hosts), memory(os.Getpid())/1024/int64(b.hosts))
	return ctx.Err()
}

// restart kills the controller and starts it again.
func (b *bench) restart(ctx context.Context) error {
	for _, h := range b.models {
		h.Libvirt.Calls()
	}
	begin := time.Now()
	b.kill()
	if err := b.start(ctx); err != nil {
		return err
	}
	b.row("controller killed and started: until it answers", "%.1f s", time.Since(begin).Seconds())
	if err := b.connected(ctx); err != nil {
		return err
	}
	for deadline := time.Now().Add(5 * time.Minute); ; wait(ctx, 200*time.Millisecond) {
		n, err := b.count(ctx, "vm", "status.state=Running")
		if err == nil && n == b.hosts*b.vms {
			break
		}
		if ctx.Err() != nil || time.Now().After(deadline) {
			return fmt.Errorf("%d of %d VMs run again: %w", n, b.hosts*b.vms, err)
		}
	}
	b.row("... until all hosts are connected and all VMs known to run", "%.1f s", time.Since(begin).Seconds())
	calls := 0
	for _, h := range b.models {
		calls += len(h.Libvirt.Calls())
	}
	b.row("... changes to domains meanwhile", "%d", calls)
	return nil
}

// memory is a process's resident memory in bytes.
func memory(pid int) int64 {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return 0
	}
	for line := range strings.Lines(string(text)) {
		if rest, ok := strings.CutPrefix(line, "VmRSS:"); ok {
			kib, err := strconv.ParseInt(strings.TrimSuffix(strings.TrimSpace(rest), " kB"), 10, 64)
			if err == nil {
				return kib << 10
			}
		}
	}
	return 0
}

// busy is the CPU time that a process has used.
func busy(pid int) time.Duration {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0
	}
	_, rest, _ := bytes.Cut(text, []byte(") "))
	fields := strings.Fields(string(rest))
	if len(fields) < 13 {
		return 0
	}
	var ticks int64
	for _, f := range fields[11:13] { // utime, stime
		n, err := strconv.ParseInt(f, 10, 64)
		if err != nil {
			return 0
		}
		ticks += n
	}
	return time.Duration(ticks) * time.Second / 100
}
