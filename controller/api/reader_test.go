package api

import (
	"iter"
	"time"

	"shoal/controller/resource"
	"shoal/desired"
)

// emptyReader has nothing.
type emptyReader struct{}

func none[T any](func(T) bool) {}

func (emptyReader) Seq() uint64                                   { return 0 }
func (emptyReader) Get(resource.Kind, string) resource.Resource   { return nil }
func (emptyReader) All(resource.Kind) iter.Seq[resource.Resource] { return none[resource.Resource] }
func (emptyReader) Named(resource.Kind, string) iter.Seq[resource.Resource] {
	return none[resource.Resource]
}

func (emptyReader) Referrers(_, _ resource.Kind, _ string) iter.Seq[resource.Resource] {
	return none[resource.Resource]
}

func (emptyReader) Owned(resource.Kind, string) iter.Seq[resource.Resource] {
	return none[resource.Resource]
}
func (emptyReader) Holder(string) resource.Resource                   { return nil }
func (emptyReader) HoldersFrom(string, string) iter.Seq[string]       { return none[string] }
func (e emptyReader) Observed() resource.Observed                     { return e }
func (emptyReader) Status(string, desired.Ref) (desired.Status, bool) { return desired.Status{}, false }

func (emptyReader) Host(string) resource.HostObservation {
	return resource.HostObservation{Since: time.Time{}}
}

func (emptyReader) Published(string, desired.Ref) (p resource.PublishedItem, known bool) {
	return p, false
}
func (emptyReader) PublishedGen(string) uint64 { return 0 }
func (emptyReader) Drifted() iter.Seq2[resource.HostItem, desired.Status] {
	return func(func(resource.HostItem, desired.Status) bool) {}
}
func (emptyReader) PublishedSeq() uint64 { return 0 }
