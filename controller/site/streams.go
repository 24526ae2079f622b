package site

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"shoal/controller/journal"
	"shoal/desired"
	"shoal/subjects"
)

// Limits of single messages and of growth. JetStream reserves a limit in bytes when the stream is made.
const (
	maxItem        = 512 << 10
	historyAge     = 90 * 24 * time.Hour
	historyDefault = 8 << 30

	// dedupWindow is for how long a repeated message id is recognised.
	dedupWindow = 2 * time.Minute
)

// schemaKey marks our streams with the version of this table.
const schemaKey, schema = "shoal-schema", "1"

// bucket is what all our buckets share. They are made as streams: the KV API knows neither persist_mode nor republish
// for headers, and its update drops what it does not know.
func bucket(name string) jetstream.StreamConfig {
	return jetstream.StreamConfig{
		Name:              subjects.BucketStream(name),
		Subjects:          []string{subjects.BucketSubject(name, ">")},
		MaxMsgsPerSubject: 1,
		MaxMsgSize:        maxItem,
		Discard:           jetstream.DiscardNew,
		Storage:           jetstream.FileStorage,
		Replicas:          1,
		Duplicates:        dedupWindow,
		DenyDelete:        true,
		AllowRollup:       true,
		AllowDirect:       true,
		Metadata:          map[string]string{schemaKey: schema},
	}
}

// rebuildable makes a stream fast instead of durable. With more than one replica, which is for what many hosts would have to tell again or
// nobody could, it is not faster either: JetStream has no async mode for those.
func rebuildable(c jetstream.StreamConfig, replicas int) jetstream.StreamConfig {
	if c.Replicas = replicas; replicas == 1 {
		c.PersistMode = jetstream.AsyncPersistMode
	}
	return c
}

// Desired is the bucket of a host's document. Each write is announced to the host as a hint without content. It has no
// limit of its own: JetStream would reserve that much for every host, and it holds one message for each key anyway.
func Desired(host string) jetstream.StreamConfig {
	name := subjects.DesiredBucket(host)
	c := rebuildable(bucket(name), 1)
	c.Description = "what host " + host + " must be"
	c.AllowMsgTTL = true // marks of removed items go by themselves
	c.RePublish = &jetstream.RePublish{
		Source:      subjects.BucketSubject(name, ">"),
		Destination: subjects.Hint(host, ">"),
		HeadersOnly: true,
	}
	return c
}

// table is every stream but those of the hosts.
func table(replicas int, historyBytes int64) []jetstream.StreamConfig {
	j := journal.Config()
	j.Replicas = replicas

	resources := rebuildable(bucket(subjects.ResourcesBucket), 1) // its writer sends ahead of acknowledgements, which copies do not allow
	resources.Description = "the newest state of every resource, by the journal"
	resources.AllowMsgTTL = true

	observed := rebuildable(bucket(subjects.ObservedBucket), replicas)
	observed.Description = "what the agents report, under <host>.<kind>.<id>"
	observed.AllowMsgTTL = true

	lease := bucket(subjects.LeaseBucket)
	lease.Description = "which controller leads"
	lease.Storage = jetstream.MemoryStorage
	lease.Replicas = replicas
	lease.MaxBytes = 1 << 20
	lease.MaxAge = LeaseTTL
	lease.Duplicates = LeaseTTL
	lease.AllowMsgTTL = true
	lease.SubjectDeleteMarkerTTL = LeaseTTL

	artifacts := bucket(subjects.ArtifactsBucket)
	artifacts.Name = "OBJ_" + subjects.ArtifactsBucket
	artifacts.Description = "agent binaries and installation assets"
	artifacts.Subjects = []string{"$O." + subjects.ArtifactsBucket + ".C.>", "$O." + subjects.ArtifactsBucket + ".M.>"}
	artifacts.MaxMsgsPerSubject = 0
	artifacts.MaxMsgSize = 0
	artifacts.DenyDelete = false
	artifacts.Replicas = replicas

	return []jetstream.StreamConfig{j, resources, observed, history(replicas, historyBytes), lease, artifacts}
}

// history is the record of changes. Document items are published into it, observed statuses are sourced from their
// bucket under the same subject, so that one filter shows both what was wanted and what became of it.
func history(replicas int, maxBytes int64) jetstream.StreamConfig {
	source := &jetstream.StreamSource{Name: subjects.BucketStream(subjects.ObservedBucket)}
	for _, k := range desired.Kinds() {
		source.SubjectTransforms = append(source.SubjectTransforms, jetstream.SubjectTransformConfig{
			Source:      subjects.BucketSubject(subjects.ObservedBucket, "*."+string(k)+".*"),
			Destination: subjects.HistorySubject("{{wildcard(1)}}", string(k)+".{{wildcard(2)}}"),
		})
	}
	return rebuildable(jetstream.StreamConfig{
		Name:        subjects.HistoryStream,
		Description: "every change of every host's document, and of what its agent reported",
		Subjects:    []string{subjects.HistoryAll},
		Storage:     jetstream.FileStorage,
		MaxAge:      historyAge,
		MaxBytes:    maxBytes,
		MaxMsgSize:  maxItem,
		Discard:     jetstream.DiscardOld,
		Duplicates:  dedupWindow,
		Compression: jetstream.S2Compression,
		AllowDirect: true,
		DenyDelete:  true,
		Sources:     []*jetstream.StreamSource{source},
		Metadata:    map[string]string{schemaKey: schema},
	}, replicas)
}

// makeStreams brings every stream of the table about. persist_mode can't be changed later, and deny_purge not be taken
// back; a stream that was made otherwise keeps what it has.
func makeStreams(ctx context.Context, js jetstream.JetStream, table []jetstream.StreamConfig) error {
	for _, c := range table {
		s, err := js.Stream(ctx, c.Name)
		switch {
		case errors.Is(err, jetstream.ErrStreamNotFound):
		case err != nil:
			return fmt.Errorf("look up stream %s: %w", c.Name, err)
		default:
			c.DenyPurge = s.CachedInfo().Config.DenyPurge
			if c.PersistMode = s.CachedInfo().Config.PersistMode; c.PersistMode == jetstream.AsyncPersistMode {
				c.Replicas = 1
			}
		}
		if _, err := js.CreateOrUpdateStream(ctx, c); err != nil {
			return fmt.Errorf("create stream %s: %w", c.Name, err)
		}
	}
	return nil
}
