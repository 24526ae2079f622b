package fleet_test

import (
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"sync/atomic"
	"time"

	"shoal/controller/resource"
	"shoal/desired"
)

// user asks for things, one after the other, and remembers what was promised to him.
type user struct {
	w   *world
	rng *rand.Rand

	vms   map[string]*vm
	data  map[string]*volume
	made  int
	acts  map[string]int // resets that may have been asked for, by VM
	calls int
	// amnesia says that the journal may have lost what was acknowledged.
	amnesia atomic.Bool
	// turn is held during a call.
	turn chan struct{}
}

// vm is what the user knows of a VM. What is unsure is not checked.
type vm struct {
	id, name string
	power    desired.Power
	gone     bool
	unsure   bool
}

type volume struct{ id string }

func newUser(w *world, rng *rand.Rand) *user {
	return &user{w: w, rng: rng, vms: map[string]*vm{}, data: map[string]*volume{}, acts: map[string]int{}, turn: make(chan struct{}, 1)}
}

// pick is one of these, in an order that does not depend on the map's.
func pick[T any](rng *rand.Rand, all map[string]T) (T, bool) {
	var none T
	if len(all) == 0 {
		return none, false
	}
	keys := slices.Sorted(maps.Keys(all))
	return all[keys[rng.IntN(len(keys))]], true
}

// forget makes everything unsure: the journal is rolled back. Nobody asks for anything from then on, as one should not before the hosts
// have been decided about: an address, say, might be given out twice.
func (u *user) forget() {
	u.turn <- struct{}{}
	u.amnesia.Store(true)
	<-u.turn
}

// act makes one call.
func (u *user) act() {
	u.turn <- struct{}{}
	defer func() { <-u.turn }()
	if u.amnesia.Load() {
		return
	}
	u.calls++
	const patience = 20 * time.Second
	live := map[string]*vm{}
	for id, v := range u.vms {
		if !v.gone {
			live[id] = v
		}
	}
	// do makes a call about a VM; done is what it means when it is acknowledged.
	do := func(v *vm, verb string, body map[string]any, done func()) {
		body["id"] = v.id
		_, err := u.w.call(resource.KindVM, verb, body, patience)
		switch {
		case err == nil:
			done()
		case errors.Is(err, errUnknown):
			v.unsure = true
		}
		u.w.logf("user: vm %s %s: %v", verb, v.name, err)
	}
	what := u.rng.IntN(100)
	v, some := pick(u.rng, live)
	switch {
	case what < 30 || !some:
		u.made++
		name := fmt.Sprintf("v%d", u.made)
		body := map[string]any{
			"name": name, "cpus": 1, "memory": "64MiB", "root_size": "1GiB", "networks": []map[string]any{{"l3": "net1"}},
			"secgroups": []string{fmt.Sprintf("g%d", u.rng.IntN(2))}, "storage": []string{"local", "nfs"}[u.rng.IntN(2)],
		}
		if u.rng.IntN(3) == 0 {
			body["disks"] = []map[string]any{{"size": "2GiB", "name": name + "-data"}}
		}
		if u.rng.IntN(4) == 0 {
			body["stopped"] = true
		}
		r, err := u.w.call(resource.KindVM, "create", body, patience)
		if err == nil {
			power := desired.PowerOn
			if body["stopped"] == true {
				power = desired.PowerOff
			}
			u.vms[id(r)] = &vm{id: id(r), name: name, power: power}
		}
		u.w.logf("user: vm create %s %s: %v", name, id(r), err)
	case what < 45:
		do(v, "stop", map[string]any{"force": u.rng.IntN(2) == 0}, func() { v.power = desired.PowerOff })
	case what < 60:
		do(v, "start", map[string]any{}, func() { v.power = desired.PowerOn })
	case what < 65:
		do(v, "destroy", map[string]any{"force": u.rng.IntN(2) == 0}, func() { v.gone = true })
		if v.unsure {
			v.gone = true
		}
	case what < 70:
		u.acts[v.id]++
		do(v, "reset", map[string]any{}, func() {})
	case what < 78:
		u.made++
		_, err := u.w.call(resource.KindSecRule, "create", map[string]any{
			"secgroup": fmt.Sprintf("g%d", u.rng.IntN(2)), "direction": "ingress", "protocol": "tcp", "port": fmt.Sprint(1000 + u.made), "remote": "g0",
		}, patience)
		u.w.logf("user: secrule create: %v", err)
	case what < 86:
		u.made++
		r, err := u.w.call(resource.KindVolume, "create", map[string]any{"name": fmt.Sprintf("d%d", u.made), "zone": "z1", "size": "1GiB"}, patience)
		if err == nil {
			u.data[id(r)] = &volume{id: id(r)}
		}
		u.w.logf("user: volume create: %v", err)
	case what < 93:
		if d, ok := pick(u.rng, u.data); ok {
			_, err := u.w.call(resource.KindVolume, "attach", map[string]any{"id": d.id, "vm": v.id}, patience)
			u.w.logf("user: volume attach %s %s: %v", d.id, v.name, err)
		}
	default:
		if d, ok := pick(u.rng, u.data); ok {
			_, err := u.w.call(resource.KindVolume, "detach", map[string]any{"id": d.id}, patience)
			u.w.logf("user: volume detach %s: %v", d.id, err)
		}
	}
}
