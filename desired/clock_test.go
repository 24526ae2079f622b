package desired

import (
	"testing"
	"time"
)

func TestCompareClocks(t *testing.T) {
	t.Parallel()
	at := time.Date(2026, 11, 24, 12, 0, 0, 0, time.UTC)
	for _, test := range []struct {
		name   string
		took   time.Duration
		theirs time.Duration // at the controller, after the host's clock showed at
		want   Clock
		text   string
		beyond bool
	}{
		{"the same", 20 * time.Millisecond, 10 * time.Millisecond, Clock{0, 10}, "exact", false},
		{"behind", 0, 1500 * time.Millisecond, Clock{-1500, 0}, "1.5s behind", true},
		{"ahead", 10 * time.Millisecond, -3195 * time.Millisecond, Clock{3200, 5}, "3.2s ahead", true},
		{"as far as it may be", 0, -time.Second, Clock{1000, 0}, "1s ahead", false},
		{"not sure", 2 * time.Second, -500 * time.Millisecond, Clock{1500, 1000}, "1.5s ahead", false},
		{"another year", 0, 366 * 24 * time.Hour, Clock{-366 * 24 * 3600 * 1000, 0}, "8784h0m0s behind", true},
		{"rounded up", 2*time.Millisecond + 2, time.Millisecond, Clock{0, 2}, "exact", false},
	} {
		got := CompareClocks(at, test.took, at.Add(test.theirs))
		if got != test.want || got.String() != test.text || got.Beyond(ClockTolerance) != test.beyond {
			t.Errorf("%s: %+v, %q, beyond %v; want %+v, %q, %v", test.name, got, got, got.Beyond(ClockTolerance), test.want, test.text, test.beyond)
		}
	}
}
