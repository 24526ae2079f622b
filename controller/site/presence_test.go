package site

import (
	"context"
	"errors"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// TestPresence_AsksAgainSoon: of hosts that connected before anybody listened only a list tells. Busy servers may not answer the first
// ones in time, and hosts are not to be taken for absent for a minute because of that.
func TestPresence_AsksAgainSoon(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		start := time.Now()
		p := &presence{
			conns: map[string]map[connKey]struct{}{}, told: map[string]bool{}, gone: map[connKey]struct{}{}, fresh: map[connKey]struct{}{},
			missing: map[string]int{}, keys: &sync.Map{},
		}
		heard := make(chan time.Duration, 1)
		p.tell = func(host string, connected bool, _ time.Time) {
			if host != "h1" || !connected {
				t.Errorf("told %s %t", host, connected)
			}
			heard <- time.Since(start)
		}
		asked := 0
		connections := func(context.Context) list {
			if asked++; asked <= 3 {
				time.Sleep(connzWait)
				return list{err: errors.New("no answer")}
			}
			return list{servers: map[string]struct{}{"s": {}}, conns: map[connKey]string{{"s", 1}: "h1"}}
		}
		ended := make(chan error, 1)
		go func() { ended <- p.follow(ctx, nil, nil, connections) }()
		if took := <-heard; took > 3*connzWait+7*reconcileRetry {
			t.Errorf("the host is known after %s", took)
		}
		cancel()
		if err := <-ended; !errors.Is(err, context.Canceled) {
			t.Error(err)
		}
	})
}
