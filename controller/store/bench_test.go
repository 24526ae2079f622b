package store

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"runtime/debug"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/rs/zerolog"

	"shoal/controller/journal"
	"shoal/controller/resource"
)

// benchWorld puts what NICs need into a store.
func benchWorld(tx resource.Tx) error {
	z := zone("z")
	c := &resource.Cluster{Meta: resource.Meta{ID: "c", Name: "c"}, ZoneID: "z", State: resource.Enabled}
	l2 := &resource.L2{Meta: resource.Meta{ID: "l2", Name: "l2"}, ZoneID: "z", Type: resource.L2NoVLAN, Device: "eth0", ClusterIDs: []string{"c"}}
	l3 := &resource.L3{Meta: resource.Meta{ID: "l3", Name: "l3"}, L2ID: "l2", Category: resource.CategoryPrivate}
	h := &resource.Host{Meta: resource.Meta{ID: "h", Name: "h"}, ClusterID: "c", State: resource.Enabled, PublicKey: "U" + fmt.Sprintf("%055d", 0)}
	for _, r := range []resource.Resource{z, c, l2, l3, h} {
		if err := tx.Put(r); err != nil {
			return err
		}
	}
	return nil
}

func benchVM(tx resource.Tx) *resource.VM {
	return &resource.VM{
		Meta: resource.Meta{ID: tx.NewID(), Name: "web", Description: "one of many", Tags: []string{"a", "b"}}, ZoneID: "z", ClusterID: "c", HostID: "h",
		CPUs: 2, MemoryMiB: 2048, Strategy: resource.FewestVMs, Machine: "q35", Power: "on", StopSeconds: 60,
	}
}

func benchNIC(tx resource.Tx, vm string, n uint32) *resource.NIC {
	ip := netip.AddrFrom4([4]byte{10, byte(n >> 16), byte(n >> 8), byte(n)})
	return &resource.NIC{
		Meta: resource.Meta{ID: tx.NewID(), Name: "nic0"}, VMID: vm, L3ID: "l3", IP: ip, Model: "virtio", AntiSpoof: true,
		MAC: fmt.Sprintf("52:54:00:%02x:%02x:%02x", byte(n>>16), byte(n>>8), byte(n)),
	}
}

// BenchmarkCommit256 is the throughput of 256 callers, each of which creates one VM per transaction, on a store with
// fsync: in the same process are the server, the callers and the projection.
func BenchmarkCommit256(b *testing.B) { benchCommit(b, 256, false) }

// BenchmarkCommit256Pairs does the same with a VM and its NIC with an address: two mutations per transaction.
func BenchmarkCommit256Pairs(b *testing.B) { benchCommit(b, 256, true) }

func benchCommit(b *testing.B, callers int, pairs bool) {
	// As shoal-controller runs.
	defer debug.SetGCPercent(debug.SetGCPercent(400))
	ctx := context.Background()
	bus := newBus(b)
	s := bus.store(ctx, bus.connect(nats.InProcessServer(bus.srv)))
	lead(ctx, b, s)
	commit(ctx, b, s, "world", benchWorld)
	took := make([][]time.Duration, callers)
	var wg sync.WaitGroup
	b.ReportAllocs()
	b.ResetTimer()
	for c := range callers {
		wg.Go(func() {
			for i := c; i < b.N; i += callers {
				began := time.Now()
				if _, err := s.Commit(ctx, request(fmt.Sprintf("r%d", i)), func(tx resource.Tx) error {
					vm := benchVM(tx)
					if err := tx.Put(vm); err != nil || !pairs {
						return err
					}
					return tx.Put(benchNIC(tx, vm.ID, uint32(i)))
				}); err != nil {
					b.Error(err)
					return
				}
				took[c] = append(took[c], time.Since(began))
			}
		})
	}
	wg.Wait()
	b.StopTimer()
	mutations := b.N
	if pairs {
		mutations *= 2
	}
	all := slices.Concat(took...)
	slices.Sort(all)
	b.ReportMetric(float64(mutations)/b.Elapsed().Seconds(), "mutations/s")
	b.ReportMetric(ms(all[len(all)/2]), "p50-ms")
	b.ReportMetric(ms(all[len(all)*99/100]), "p99-ms")
}

func ms(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }

// BenchmarkCommit1 is one caller beside one bare append of the same bytes, alternating in the same run, so that both meet
// the same disk. What matters is the ratio of the medians.
func BenchmarkCommit1(b *testing.B) {
	ctx := context.Background()
	ours, bare := newBus(b), newBus(b)
	s := ours.store(ctx, ours.connect(nats.InProcessServer(ours.srv)))
	lead(ctx, b, s)
	commit(ctx, b, s, "world", benchWorld)
	js := bare.connect(nats.InProcessServer(bare.srv))
	payload := benchPayload(b)
	var t1, t2 []time.Duration
	b.ResetTimer()
	for i := range b.N {
		began := time.Now()
		if _, err := s.Commit(ctx, request(fmt.Sprintf("r%d", i)), func(tx resource.Tx) error { return tx.Put(benchVM(tx)) }); err != nil {
			b.Fatal(err)
		}
		t1 = append(t1, time.Since(began))
		began = time.Now()
		if _, err := js.Publish(ctx, "shoal.journal", payload); err != nil {
			b.Fatal(err)
		}
		t2 = append(t2, time.Since(began))
	}
	b.StopTimer()
	slices.Sort(t1)
	slices.Sort(t2)
	b.ReportMetric(ms(t1[len(t1)/2]), "commit-p50-ms")
	b.ReportMetric(ms(t2[len(t2)/2]), "bare-p50-ms")
	b.ReportMetric(ms(t1[len(t1)*99/100]), "commit-p99-ms")
	b.ReportMetric(ms(t2[len(t2)*99/100]), "bare-p99-ms")
	b.ReportMetric(float64(t1[len(t1)/2])/float64(t2[len(t2)/2]), "ratio")
}

// benchPayload is a message as BenchmarkCommit1 writes it.
func benchPayload(b *testing.B) []byte {
	s, err := New(Config{Log: zerolog.Nop()})
	if err != nil {
		b.Fatal(err)
	}
	_, after, err := s.DryRun(context.Background(), request("r1"), func(tx resource.Tx) error {
		return errors.Join(benchWorld(tx), tx.Put(benchVM(tx)))
	})
	if err != nil {
		b.Fatal(err)
	}
	for vm := range after.All(resource.KindVM) {
		value, err := encodeResource(vm)
		if err != nil {
			b.Fatal(err)
		}
		e, err := journal.Entry{
			Request: request("r1"), At: vm.Base().Created, Changes: []journal.Change{{Kind: resource.KindVM, ID: vm.Base().ID, Value: value}},
		}.Encode()
		if err != nil {
			b.Fatal(err)
		}
		return journal.Join([]journal.Encoded{e})
	}
	b.Fatal("there is no VM")
	return nil
}

// BenchmarkLoad reads 100,000 resources from the projection, and from the journal alone.
func BenchmarkLoad(b *testing.B) {
	ctx := context.Background()
	bus := newBus(b)
	js := bus.connect(nats.InProcessServer(bus.srv))
	s := bus.store(ctx, js)
	lead(ctx, b, s)
	commit(ctx, b, s, "world", benchWorld)
	for i := range 500 {
		commit(ctx, b, s, fmt.Sprint(i), func(tx resource.Tx) error {
			for range 200 {
				if err := tx.Put(benchVM(tx)); err != nil {
					return err
				}
			}
			return nil
		})
	}
	awaitProjection(ctx, b, s)
	for _, from := range []string{"projection", "journal"} {
		b.Run(from, func(b *testing.B) {
			for range b.N {
				cfg := Config{Journal: s.journal, JS: js, Log: zerolog.Nop()}
				if from == "journal" {
					cfg.JS = nil
				}
				fresh, err := New(cfg)
				if err != nil {
					b.Fatal(err)
				}
				if err := fresh.Load(ctx); err != nil {
					b.Fatal(err)
				}
				if fresh.Seq() != s.Seq() {
					b.Fatalf("loaded up to %d of %d", fresh.Seq(), s.Seq())
				}
			}
		})
	}
}

// BenchmarkView is what every reader pays for its snapshot.
func BenchmarkView(b *testing.B) {
	s, err := New(Config{Log: zerolog.Nop()})
	if err != nil {
		b.Fatal(err)
	}
	b.ReportAllocs()
	for b.Loop() {
		s.View()
	}
}
