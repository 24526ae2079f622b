package fleet_test

import (
	"context"
	"fmt"
	"maps"
	"path"
	"slices"
	"strings"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"shoal/agent/host"
	"shoal/agent/netdev"
	"shoal/desired"
	"shoal/subjects"
)

// What others have on every host, which nobody may touch.
const (
	foreignVM     = "ffffffff-0000-4000-8000-000000000001"
	foreignBridge = "br-office"
	foreignFile   = "/srv/shoal/volumes/somebody.qcow2"
	foreignRule   = "-p tcp --dport 22 -j ACCEPT"
)

// settleForeigners puts them there.
func (w *world) settleForeigners(n *node) {
	ctx := context.Background()
	lv := n.host.Libvirt
	w.must(lv.Define(ctx, "<domain><name>office</name><uuid>"+foreignVM+"</uuid><devices></devices></domain>"))
	n.host.OnStart(nil)
	w.must(lv.Start(ctx, foreignVM, false))
	n.host.OnStart(func(xml string) error { return w.starts(n, xml) })
	w.must(n.host.Links.Add(ctx, netdev.Link{Name: foreignBridge, Type: "bridge", Up: true}))
	n.host.Storage.Put(foreignFile, []byte("precious"))
	_, err := n.host.Filter.Run(ctx, host.Command{Name: "iptables", Args: []string{"-A", "INPUT", "-p", "tcp", "--dport", "22", "-j", "ACCEPT"}})
	w.must(err)
}

// check looks for what must not be after the faults have ended and all has settled. powerCuts are hosts that were booted: what
// was only in memory is gone there.
func (w *world) check(u *user, booted map[*node]bool, flushed map[*node]bool) {
	ctx := context.Background()
	// Nothing unmarked is touched.
	for _, n := range w.hosts {
		if _, err := n.host.Libvirt.Lookup(ctx, foreignVM); err != nil {
			w.violate("%s: the foreign domain: %v", n.name, err)
		}
		if !n.host.Storage.Has(foreignFile) {
			w.violate("%s: the foreign file is gone", n.name)
		}
		if booted[n] {
			continue
		}
		if !slices.ContainsFunc(must(n.host.Links.List(ctx)), func(l netdev.Link) bool { return l.Name == foreignBridge && l.Up }) {
			w.violate("%s: the foreign bridge is gone", n.name)
		}
		if out := string(must(n.host.Filter.Run(ctx, host.Command{Name: "iptables", Args: []string{"-S", "INPUT"}}))); !flushed[n] && !strings.Contains(out, foreignRule) {
			w.violate("%s: the foreign rule is gone: %s", n.name, out)
		}
	}

	// A domain runs where it is wanted, and nowhere else.
	runs := map[string][]string{}
	for _, n := range w.hosts {
		for _, vm := range n.host.Libvirt.Active() {
			if vm != foreignVM {
				runs[vm] = append(runs[vm], n.id)
			}
		}
	}
	vms := map[string]map[string]any{}
	for _, vm := range w.all("vm") {
		id := vm["id"].(string)
		vms[id] = vm
		on := vm["power"] == string(desired.PowerOn) && vm["destroyed"] == nil
		if on && !slices.Equal(runs[id], []string{vm["host_id"].(string)}) || !on && len(runs[id]) > 0 {
			w.violate("vm %v is wanted %v on %v and runs on %v", vm["name"], vm["power"], vm["host_id"], runs[id])
		}
	}
	for id, on := range runs {
		// Of what a journal has lost, hosts keep what the guard against shrinking does not let go.
		if vms[id] == nil && !u.amnesia.Load() {
			w.violate("domain %s runs on %v and is no VM", id, on)
		}
	}

	// Nothing acknowledged is lost.
	if !u.amnesia.Load() {
		for id, v := range u.vms {
			got := vms[id]
			switch {
			case v.gone && got != nil && got["destroyed"] == nil && !v.unsure:
				w.violate("vm %s was destroyed and is there", v.name)
			case !v.gone && got == nil:
				w.violate("vm %s was made and is not there", v.name)
			case !v.gone && !v.unsure && !w.stopped[id] && got["power"] != string(v.power):
				w.violate("vm %s was wanted %s and is wanted %v", v.name, v.power, got["power"])
			}
		}
	}

	// Data is there, and was made once.
	volumes := w.all("volume")
	for _, v := range volumes {
		host, _ := v["host_id"].(string)
		status, _ := v["status"].(map[string]any)
		file, _ := status["path"].(string)
		if file == "" {
			continue
		}
		for _, n := range w.hosts {
			if host != "" && n.id != host {
				continue
			}
			if made := n.host.Storage.Made(file); made > 1 {
				w.violate("volume %v was made %d times: %s", v["name"], made, file)
			}
		}
	}
	for _, n := range w.hosts {
		for _, f := range n.host.Storage.Files() {
			if strings.Contains(f, "/volumes/") && !strings.HasPrefix(path.Base(f), ".") {
				if made := n.host.Storage.Made(f); made > 1 {
					w.violate("%s was made %d times", f, made)
				}
			}
		}
	}

	// Every address has one owner.
	owners := map[string]any{}
	for _, nic := range w.all("nic") {
		for _, key := range []string{"ip", "mac"} {
			a := fmt.Sprint(nic[key])
			if other, taken := owners[a]; taken {
				w.violate("%s is that of NICs %v and %v", a, other, nic["id"])
			}
			owners[a] = nic["id"]
		}
	}

	// No act twice.
	for _, n := range w.hosts {
		resets := map[string]int{}
		for _, c := range n.host.Libvirt.Calls() {
			if vm, ok := strings.CutPrefix(c, "reset "); ok {
				resets[vm]++
			}
		}
		for vm, times := range resets {
			if times > u.acts[vm] {
				w.violate("%s was reset %d times on %s, for %d calls", vm, times, n.name, u.acts[vm])
			}
		}
	}
}

// ends is the end of every host's bucket.
func (w *world) ends() map[string]uint64 {
	js, err := jetstream.New(w.ops)
	w.must(err)
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	out := map[string]uint64{}
	for _, n := range w.hosts {
		s, err := js.Stream(ctx, subjects.BucketStream(subjects.DesiredBucket(n.id)))
		w.must(err)
		out[n.name] = s.CachedInfo().State.LastSeq
	}
	return out
}

// checkRender starts all controllers anew: the next leader renders every document in full, and what it renders is what the last one
// wrote piece by piece, so that nothing is written.
func (w *world) checkRender() {
	before := w.ends()
	for _, c := range w.controllers {
		w.kill(c)
	}
	for _, c := range w.controllers {
		w.launch(c)
	}
	w.all("vm") // once somebody leads
	time.Sleep(2 * time.Minute)
	if after := w.ends(); !maps.Equal(before, after) {
		w.violate("a full rendering changed documents: ends of buckets were %v and are %v", before, after)
	}
}
