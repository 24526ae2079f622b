package fleet_test

import (
	"context"
	"errors"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"shoal/agent/host"
	"shoal/agent/netdev"
	"shoal/agent/sim/fleet"
	"shoal/subjects"
)

// chaos disturbs a world. Each fault that lasts puts its end into ends.
type chaos struct {
	w     *world
	u     *user
	rng   *rand.Rand
	ends  []ending
	count map[string]int
	// booted and flushed are hosts on which an operator's things in memory are gone.
	booted, flushed map[*node]bool
}

type ending struct {
	at   time.Time
	what string
	end  func()
}

func (c *chaos) lasting(what string, least, most time.Duration, end func()) {
	c.ends = append(c.ends, ending{time.Now().Add(least + rand64(c.rng, most-least)), what, end})
}

func rand64(rng *rand.Rand, d time.Duration) time.Duration {
	return time.Duration(rng.Int64N(int64(d) + 1))
}

// due ends what is over; with all, everything.
func (c *chaos) due(all bool) {
	var later []ending
	ends := c.ends
	c.ends = nil
	slices.SortStableFunc(ends, func(a, b ending) int { return a.at.Compare(b.at) })
	for _, e := range ends {
		if all || !time.Now().Before(e.at) {
			c.w.logf("over: %s", e.what)
			e.end()
		} else {
			later = append(later, e)
		}
	}
	c.ends = append(c.ends, later...)
}

func (c *chaos) host() *node { return c.w.hosts[c.rng.IntN(len(c.w.hosts))] }

func (c *chaos) controller() *process { return c.w.controllers[c.rng.IntN(len(c.w.controllers))] }

// ways is how a cable is cut: up, down, or both.
func (c *chaos) ways() (up, down bool) {
	n := 1 + c.rng.IntN(3)
	return n&1 != 0, n&2 != 0
}

var errFault = errors.New("input/output error")

// faults are all that can happen, with how often.
func faults() []struct {
	name   string
	weight int
	do     func(c *chaos)
} {
	return []struct {
		name   string
		weight int
		do     func(c *chaos)
	}{
		{"cut host", 10, func(c *chaos) {
			n := c.host()
			up, down := c.ways()
			c.w.logf("cut %s: up %t, down %t", n.name, up, down)
			n.cable.cut(up, down)
			c.lasting("cut "+n.name, time.Second, 3*time.Minute, func() {
				if !n.dead.Load() {
					n.cable.heal()
				}
			})
		}},
		{"cut controller", 6, func(c *chaos) {
			p := c.controller()
			up, down := c.ways()
			c.w.logf("cut %s: up %t, down %t", p.name, up, down)
			p.cable.cut(up, down)
			c.lasting("cut "+p.name, time.Second, time.Minute, p.cable.heal)
		}},
		{"reset", 5, func(c *chaos) {
			c.host().cable.reset()
			c.controller().cable.reset()
		}},
		{"kill agent", 8, func(c *chaos) {
			n := c.host()
			if n.dead.Load() {
				return
			}
			c.w.killNode(n)
			c.lasting("kill "+n.name, 0, time.Minute, func() { c.w.launchNode(n) })
		}},
		{"doom agent", 14, func(c *chaos) {
			n := c.host()
			if n.dead.Load() {
				return
			}
			n.late.Store(c.rng.IntN(2) == 0)
			n.doom.Store(int64(1 + c.rng.IntN(60)))
			c.lasting("doom "+n.name, time.Second, time.Minute, func() {
				n.doom.Store(0)
				if n.dead.Load() {
					<-n.done
					c.w.launchNode(n)
				}
			})
		}},
		{"kill controller", 7, func(c *chaos) {
			p := c.controller()
			c.w.kill(p)
			time.Sleep(rand64(c.rng, 5*time.Second))
			c.w.launch(p)
		}},
		{"host calls fail", 8, func(c *chaos) {
			n := c.host()
			share, late := 1+c.rng.IntN(8), c.rng.IntN(2) == 0
			f := func(op string) fleet.Fault {
				if rand.IntN(share) == 0 {
					return fleet.Fault{Err: errFault, Late: late && rand.IntN(2) == 0}
				}
				return fleet.Fault{}
			}
			n.fault.Store(&f)
			c.lasting("failing calls of "+n.name, 5*time.Second, 2*time.Minute, func() { n.fault.Store(nil) })
		}},
		{"host calls are slow", 5, func(c *chaos) {
			n := c.host()
			most := rand64(c.rng, 20*time.Second)
			f := func(op string) fleet.Fault { return fleet.Fault{Delay: time.Duration(rand.Int64N(int64(most) + 1))} }
			n.fault.Store(&f)
			c.lasting("slow calls of "+n.name, 5*time.Second, 2*time.Minute, func() { n.fault.Store(nil) })
		}},
		{"disk full", 4, func(c *chaos) {
			n := c.host()
			n.host.Storage.SetFree(0)
			c.lasting("full disk of "+n.name, time.Second, 2*time.Minute, func() { n.host.Storage.SetFree(1 << 44) })
		}},
		{"disk read-only", 2, func(c *chaos) {
			n := c.host()
			n.host.Storage.SetReadOnly(true)
			c.lasting("read-only disk of "+n.name, time.Second, 2*time.Minute, func() { n.host.Storage.SetReadOnly(false) })
		}},
		{"filer hangs", 3, func(c *chaos) {
			n := c.host()
			for _, m := range must(n.host.Storage.Mounts()) {
				if m.Source == "filer:/export" {
					n.host.Storage.Hang(m.Path, true)
					c.lasting("hanging filer of "+n.name, time.Second, 2*time.Minute, func() { n.host.Storage.Hang(m.Path, false) })
				}
			}
		}},
		{"restart NATS", 5, func(c *chaos) {
			c.w.stopNATS()
			time.Sleep(rand64(c.rng, 20*time.Second))
			c.w.startNATS()
		}},
		{"delete bucket", 5, func(c *chaos) {
			c.js(func(ctx context.Context, js jetstream.JetStream) error {
				return js.DeleteStream(ctx, subjects.BucketStream(subjects.DesiredBucket(c.host().id)))
			})
		}},
		{"delete stream", 4, func(c *chaos) {
			c.js(func(ctx context.Context, js jetstream.JetStream) error {
				return js.DeleteStream(ctx, []string{
					subjects.BucketStream(subjects.ObservedBucket), subjects.BucketStream(subjects.ResourcesBucket), subjects.BucketStream(subjects.LeaseBucket), subjects.HistoryStream,
				}[c.rng.IntN(4)])
			})
		}},
		{"hints", 5, func(c *chaos) {
			for range 1 + c.rng.IntN(50) {
				_ = c.w.ops.Publish(subjects.Hint(c.host().id, subjects.HeadKey), nil)
			}
		}},
		{"power cut", 4, func(c *chaos) {
			n := c.host()
			if n.dead.Load() {
				return
			}
			c.w.killNode(n)
			n.host.PowerCut()
			c.booted[n] = true
			c.lasting("power cut of "+n.name, time.Second, time.Minute, func() { c.w.launchNode(n) })
		}},
		{"drift", 8, func(c *chaos) { c.drift(c.host()) }},
		{"libvirt away", 3, func(c *chaos) {
			n := c.host()
			n.host.Libvirt.SetDown(true)
			c.lasting("libvirt of "+n.name, time.Second, 2*time.Minute, func() { n.host.Libvirt.SetDown(false) })
		}},
	}
}

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

func (c *chaos) js(f func(ctx context.Context, js jetstream.JetStream) error) {
	js, err := jetstream.New(c.w.ops)
	c.w.must(err)
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	if err := f(ctx, js); err != nil {
		c.w.logf("not done: %v", err)
	}
}

// drift is somebody who works behind the agent's back.
func (c *chaos) drift(n *node) {
	n.drifted.Store(time.Now().UnixNano())
	h := n.host
	ctx := context.Background()
	switch c.rng.IntN(6) {
	case 0:
		for _, vm := range h.Libvirt.Active() {
			if vm != foreignVM {
				h.Libvirt.Kill(vm)
				break
			}
		}
	case 1:
		for _, l := range must(h.Links.List(ctx)) {
			if l.Type == "bridge" && strings.HasPrefix(l.Name, "shb") {
				_ = h.Links.Delete(ctx, l.Name)
				break
			}
		}
	case 2:
		c.flushed[n] = true
		_, _ = h.Filter.Run(ctx, host.Command{Name: "iptables", Args: []string{"-F"}})
	case 3:
		h.DHCP.Kill()
	case 4:
		for _, l := range must(h.Links.List(ctx)) {
			if strings.HasPrefix(l.Name, "sht") {
				_ = h.Links.Change(l.Name, func(l *netdev.Link) { l.Master = "" })
				break
			}
		}
	case 5:
		for _, vm := range h.Libvirt.Active() {
			if vm != foreignVM {
				c.w.mu.Lock()
				c.w.stopped[vm] = true
				c.w.mu.Unlock()
				h.Libvirt.GuestShutdown(vm)
				break
			}
		}
	}
}

// step does one thing.
func (c *chaos) step() {
	all := faults()
	sum := 0
	for _, f := range all {
		sum += f.weight
	}
	n := c.rng.IntN(sum)
	for _, f := range all {
		if n -= f.weight; n < 0 {
			c.w.logf("fault: %s", f.name)
			c.count[f.name]++
			f.do(c)
			return
		}
	}
}

// backUp copies what the NATS server has, and rollBack gives it that back.
func (c *chaos) backUp() {
	c.w.logf("fault: back up")
	c.w.stopNATS()
	c.w.backup = filepath.Join(c.w.dir, "backup")
	c.w.must(os.RemoveAll(c.w.backup))
	c.w.must(copyDir(filepath.Join(c.w.dir, "nats"), c.w.backup))
	c.w.startNATS()
}

func (c *chaos) rollBack() {
	if c.w.backup == "" {
		return
	}
	c.w.logf("fault: roll back")
	c.count["roll back"]++
	c.u.forget()
	c.w.stopNATS()
	c.w.must(os.RemoveAll(filepath.Join(c.w.dir, "nats")))
	c.w.must(copyDir(c.w.backup, filepath.Join(c.w.dir, "nats")))
	c.w.startNATS()
}

func copyDir(from, to string) error { return os.CopyFS(to, os.DirFS(from)) }
