package engine

import (
	"container/heap"
	"time"
)

// alarm is one thing to do at a time.
type alarm struct {
	at    time.Time
	fire  func()
	index int // in the heap, -1 when it is not
}

// alarms is the engine's only timer: a heap of what comes next. An idle engine has one entry, the next sweep.
type alarms struct{ heap alarmHeap }

// set arms fire for at.
func (a *alarms) set(at time.Time, fire func()) *alarm {
	al := &alarm{at: at, fire: fire}
	heap.Push(&a.heap, al)
	return al
}

// stop disarms al. A nil or past alarm is fine.
func (a *alarms) stop(al *alarm) {
	if al != nil && al.index >= 0 {
		heap.Remove(&a.heap, al.index)
	}
}

// ring fires what is due.
func (a *alarms) ring(now time.Time) {
	for len(a.heap) > 0 && !a.heap[0].at.After(now) {
		heap.Pop(&a.heap).(*alarm).fire()
	}
}

// next is when ring has to be called again.
func (a *alarms) next() (time.Time, bool) {
	if len(a.heap) == 0 {
		return time.Time{}, false
	}
	return a.heap[0].at, true
}

type alarmHeap []*alarm

func (h alarmHeap) Len() int           { return len(h) }
func (h alarmHeap) Less(i, j int) bool { return h[i].at.Before(h[j].at) }
func (h alarmHeap) Swap(i, j int) {
	h[i], h[j] = h[j], h[i]
	h[i].index, h[j].index = i, j
}

func (h *alarmHeap) Push(x any) {
	al := x.(*alarm)
	al.index = len(*h)
	*h = append(*h, al)
}

func (h *alarmHeap) Pop() any {
	old := *h
	al := old[len(old)-1]
	old[len(old)-1] = nil
	*h = old[:len(old)-1]
	al.index = -1
	return al
}
