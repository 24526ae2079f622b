package api

import (
	"fmt"
	"testing"
	"time"

	"shoal/controller/resource"
)

func TestThrottle(t *testing.T) {
	now := time.Date(2026, 11, 24, 12, 0, 0, 0, time.UTC)
	th := newThrottle(time.Second, 3, 2)
	for i := range 3 {
		if err := th.admit("10.0.0.1", "ann", now); err != nil {
			t.Fatalf("request %d of an address: %v", i, err)
		}
	}
	if err := th.admit("10.0.0.1", "bob", now); !resource.HasCode(err, resource.CodeBusy) {
		t.Errorf("one more at once: %v", err)
	}
	if err := th.admit("10.0.0.2", "ann", now); err != nil {
		t.Errorf("another address: %v", err)
	}
	if err := th.admit("10.0.0.1", "bob", now.Add(time.Second)); err != nil {
		t.Errorf("a second later: %v", err)
	}
	// Failures about a name count wherever they come from, more with each.
	wait := time.Duration(0)
	for i := range 12 {
		now = now.Add(time.Hour)
		th.about["ann"] = failures{n: i}
		th.failed("ann", now)
		hold := th.about["ann"].until.Sub(now)
		if hold < wait || hold > maxHold || i < 2 && hold != 0 {
			t.Errorf("after %d failures one waits for %s, before it was %s", i+1, hold, wait)
		}
		wait = hold
	}
	if wait != maxHold {
		t.Errorf("the longest wait is %s", wait)
	}
	if err := th.admit("10.0.0.9", "ann", now.Add(maxHold-time.Second)); !resource.HasCode(err, resource.CodeBusy) {
		t.Errorf("too soon: %v", err)
	}
	th.succeeded("ann")
	if err := th.admit("10.0.0.9", "ann", now.Add(time.Second)); err != nil {
		t.Errorf("after a success: %v", err)
	}
	// Who comes from everywhere about everything takes no memory without bound.
	for i := range maxThrottled + 1000 {
		from := fmt.Sprint(i)
		_ = th.admit(from, from, now)
		th.failed(from, now)
	}
	if len(th.from) > maxThrottled+1 || len(th.about) > maxThrottled+1 {
		t.Errorf("%d addresses and %d names are remembered", len(th.from), len(th.about))
	}
}
