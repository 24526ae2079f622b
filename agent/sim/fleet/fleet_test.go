package fleet_test

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/nats-io/nats-server/v2/server/ats"
)

var (
	seedFlag = flag.Uint64("seed", 0, "with -run TestSeed: run this seed, in this process")
	forFlag  = flag.Duration("fleet-time", 0, "with -run TestFleet: how long random seeds are run after the fixed ones")
)

// fixed are seeds that once found something. What each found is in the log of the commits that mended it:
// 3 no leader after NATS was restarted; 6 a host that was to get a new generation for ever; 7 an agent that waited for a lost answer;
// 25 a document that waited for the journal to pass its bucket; 68 two documents of one generation; 2291151039 a guest that crashed while
// it was being stopped, whose VM never was; 3635920710 statuses missing in a bucket that others had filled.
func fixed() []uint64 { return []uint64{3, 6, 7, 25, 68, 2291151039, 3635920710} }

func TestMain(m *testing.M) {
	if config := os.Getenv(natsConfigEnv); config != "" {
		if err := serveNATS(config); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	flag.Parse()
	// The server's clock of access times is the process's: born in a bubble it would keep the bubble's clock from advancing.
	ats.Register()
	os.Exit(m.Run())
}

// seedTime is how long a seed may take. Most take one or two seconds; what takes this long waits for a lock that somebody holds who waits
// for the fake clock.
const seedTime = 5 * time.Minute

// TestFleet runs the fixed seeds and then random ones. Each has a process of its own: what one bubble leaves in the pools of nats.go would
// end the next one.
func TestFleet(t *testing.T) {
	if *seedFlag != 0 {
		t.Skip("-seed is for TestSeed")
	}
	t.Parallel()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	seeds := make(chan uint64)
	var wg sync.WaitGroup
	var mu sync.Mutex
	ran := 0
	for range runtime.GOMAXPROCS(0) {
		wg.Go(func() {
			for seed := range seeds {
				out, err := inProcess(t.Context(), self, seed)
				mu.Lock()
				ran++
				mu.Unlock()
				if err != nil {
					t.Errorf("seed %d: %v\nrepeat it with: go test ./agent/sim/fleet -run 'TestSeed$' -v -seed %d\n%s", seed, err, seed, out)
				}
			}
		})
	}
	for _, seed := range fixed() {
		seeds <- seed
	}
	for end := time.Now().Add(*forFlag); time.Now().Before(end) && !t.Failed(); {
		seeds <- rand.Uint64N(1 << 32)
	}
	close(seeds)
	wg.Wait()
	t.Logf("%d seeds", ran)
}

// inProcess runs a seed in a process of its own. One that hangs tells where its goroutines are.
func inProcess(ctx context.Context, self string, seed uint64) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, seedTime)
	defer cancel()
	cmd := exec.CommandContext(ctx, self, "-test.run=^TestSeed$", "-test.v", fmt.Sprintf("-seed=%d", seed))
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGQUIT) }
	cmd.WaitDelay = 10 * time.Second
	out, err := cmd.CombinedOutput()
	if err != nil && ctx.Err() != nil {
		err = errors.Join(fmt.Errorf("no end within %s", seedTime), err)
	}
	const most = 64 << 10
	if len(out) > most {
		out = append(bytes.Clone(out[:most]), "\n..."...)
	}
	return out, err
}

// TestSeed runs one seed.
func TestSeed(t *testing.T) {
	if *seedFlag == 0 {
		t.Skip("no -seed")
	}
	begin, dir := time.Now(), t.TempDir()
	synctest.Test(t, func(t *testing.T) { runSeed(t, dir, *seedFlag) })
	t.Logf("took %s", time.Since(begin).Round(time.Millisecond))
}

// keptLog is a log that stays in the directory for temporary files when the test fails.
func keptLog(t *testing.T, name string) *os.File {
	path := filepath.Join(os.TempDir(), name)
	log, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = log.Close()
		if t.Failed() {
			t.Logf("log: %s", path)
		} else {
			_ = os.Remove(path)
		}
	})
	return log
}

// runSeed makes a world, disturbs it while somebody uses it, and looks at what is left.
func runSeed(t *testing.T, dir string, seed uint64) {
	rng := rand.New(rand.NewPCG(seed, 0))
	hosts := 2 + rng.IntN(6)
	if seed%10 == 0 {
		hosts = 20
	}
	log := keptLog(t, fmt.Sprintf("shoal-fleet-%d.log", seed))
	controllers, steps, back := 1+rng.IntN(3), 10+rng.IntN(30), -1
	if rng.IntN(4) == 0 {
		back = rng.IntN(steps)
	}
	w := newWorld(t, rng, dir, log)
	w.startNATS()
	w.populate(controllers, hosts)
	for _, n := range w.hosts {
		w.settleForeigners(n)
	}
	u := newUser(w, rand.New(rand.NewPCG(seed, 1)))
	c := &chaos{w: w, u: u, rng: rand.New(rand.NewPCG(seed, 2)), count: map[string]int{}, booted: map[*node]bool{}, flushed: map[*node]bool{}}
	done := make(chan struct{})
	stop := make(chan struct{})
	go func() {
		defer close(done)
		for {
			select {
			case <-stop:
				return
			case <-time.After(rand64(u.rng, 4*time.Second)):
			}
			u.act()
		}
	}()
	for i := range steps {
		time.Sleep(rand64(c.rng, 10*time.Second))
		c.due(false)
		switch {
		case back >= 0 && i == back/2:
			c.backUp()
		case i == back:
			c.rollBack()
		default:
			c.step()
		}
	}
	close(stop)
	<-done
	c.due(true)
	quiet := time.Now()
	w.logf("quiet")
	w.decide(u)
	if why := w.settle(20 * time.Minute); why != "" {
		t.Errorf("seed %d: not settled: %s", seed, why)
	} else {
		t.Logf("seed %d: settled %s after quiet: %d hosts, %d controllers, %d calls, %v", seed, time.Since(quiet), len(w.hosts), len(w.controllers), u.calls, c.count)
		time.Sleep(time.Minute) // for decisions that follow from what was reported last
		if why := w.settle(5 * time.Minute); why != "" {
			t.Errorf("seed %d: not settled any more: %s", seed, why)
		}
		w.check(u, c.booted, c.flushed)
		w.checkRender()
	}
	for _, v := range w.violation {
		t.Errorf("seed %d: %s", seed, v)
	}
}
