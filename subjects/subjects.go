// Package subjects names everything Shoal has on NATS: streams, buckets, keys, request subjects and the permission
// list of each role. Nothing else in Shoal spells a subject. It imports the standard library only.
//
// # Layout
//
//	JOURNAL            shoal.journal                        one message = one committed group of transactions
//	                   shoal.journal.mark                   where a round of restating ended
//	HISTORY            shoal.history.<host>.<kind>.<id>     every document item as published; observed keys are sourced in
//	KV resources       $KV.resources.<kind>.<id>            projection of the journal
//	KV desired_<host>  $KV.desired_<host>.<kind>.<id>       a host's items, and its head under the key "head"
//	KV observed        $KV.observed.<host>.<kind>.<id>      what the agents report
//	KV lease           $KV.lease.<name>                     liveness of controllers
//	OBJ artifacts      $O.artifacts.>                       binaries and installation assets
//
//	shoal.api.v1.<caller>.<kind>.<verb>     requests of people and API clients; the server enforces <caller>
//	shoal.agentapi.<host>.<verb>            requests of an agent to the controller; the server enforces <host>
//	shoal.agent.<host>.<verb>               requests of the controller to an agent
//	shoal.hint.<host>.>                     "your bucket changed": headers only, never acted on as content
//	shoal.event.<account>.<kind>.<id>       "this resource changed": a hint for waiting clients of the account that owns it
//	shoal.guest.v1.<verb>                   requests of those who have no credentials yet: login, enrol, renew, time
//
// Tokens that come from outside (host ids, resource ids, callers) must satisfy [ValidToken].
package subjects

import (
	"fmt"
	"strings"
)

// Streams and buckets.
const (
	JournalStream  = "JOURNAL"
	JournalSubject = "shoal.journal"
	// JournalMarkSubject has the ends of the rounds in which the journal says once more what is there.
	JournalMarkSubject = "shoal.journal.mark"
	HistoryStream      = "HISTORY"

	ResourcesBucket = "resources"
	ObservedBucket  = "observed"
	LeaseBucket     = "lease"
	ArtifactsBucket = "artifacts"

	// HeadKey is the key of a host's head in its desired bucket. No item kind has this name.
	HeadKey = "head"

	// LeaderKey is the key of the leading controller in the lease bucket.
	LeaderKey = "controller.leader"

	// What somebody without credentials may ask for: a person's session, a host's admission, a host's expired credentials anew, what time it is.
	GuestLogin = "login"
	GuestEnrol = "enrol"
	GuestRenew = "renew"
	GuestTime  = "time"

	historyPrefix = "shoal.history."
	desiredPrefix = "desired_"
	apiPrefix     = "shoal.api.v1."
)

// ValidToken reports whether s can stand as one token of a subject and as part of a bucket name: 1 to 64 bytes of
// [A-Za-z0-9_-]. UUIDs and user names satisfy it.
func ValidToken(s string) bool {
	if s == "" || len(s) > 64 {
		return false
	}
	for i := range len(s) {
		c := s[i]
		switch {
		case c >= 'a' && c <= 'z', c >= 'A' && c <= 'Z', c >= '0' && c <= '9', c == '_', c == '-':
		default:
			return false
		}
	}
	return true
}

// BucketStream is the stream behind a KV bucket.
func BucketStream(bucket string) string { return "KV_" + bucket }

// BucketSubject is the subject of a key in a KV bucket; key may end in ">" or hold "*".
func BucketSubject(bucket, key string) string { return "$KV." + bucket + "." + key }

// BucketKey is the key behind a subject of a bucket, and whether the subject belongs to that bucket.
func BucketKey(bucket, subject string) (string, bool) {
	return strings.CutPrefix(subject, "$KV."+bucket+".")
}

// DesiredBucket is the bucket of a host's document.
func DesiredBucket(host string) string { return desiredPrefix + host }

// DesiredHost is the host behind a desired bucket's name, and whether it is one.
func DesiredHost(bucket string) (string, bool) { return strings.CutPrefix(bucket, desiredPrefix) }

// ItemKey is the key of an item in a host's desired bucket.
func ItemKey(kind, id string) string { return kind + "." + id }

// ParseItemKey splits an item's key.
func ParseItemKey(key string) (kind, id string, err error) {
	kind, id, ok := strings.Cut(key, ".")
	if !ok || !ValidToken(kind) || !ValidToken(id) {
		return "", "", fmt.Errorf("parse item key %q: want <kind>.<id>", key)
	}
	return kind, id, nil
}

// ObservedKey is the key of an item's status in the observed bucket.
func ObservedKey(host, kind, id string) string { return host + "." + kind + "." + id }

// ParseObservedKey splits an observed key.
func ParseObservedKey(key string) (host, kind, id string, err error) {
	p := strings.Split(key, ".")
	if len(p) != 3 || !ValidToken(p[0]) || !ValidToken(p[1]) || !ValidToken(p[2]) {
		return "", "", "", fmt.Errorf("parse observed key %q: want <host>.<kind>.<id>", key)
	}
	return p[0], p[1], p[2], nil
}

// ResourceKey is the key of a resource in the resources bucket.
func ResourceKey(kind, id string) string { return kind + "." + id }

// HistorySubject is where the change of one key of a host's document is recorded.
func HistorySubject(host, key string) string { return historyPrefix + host + "." + key }

// ParseHistory splits the subject of a recorded change into the host and the key in its document.
func ParseHistory(subject string) (host, key string, err error) {
	rest, ok := strings.CutPrefix(subject, historyPrefix)
	host, key, more := strings.Cut(rest, ".")
	if !ok || !more || !ValidToken(host) || key == "" {
		return "", "", fmt.Errorf("parse history subject %q: want %s<host>.<key>", subject, historyPrefix)
	}
	return host, key, nil
}

// HeaderCause is the header of a removal in HISTORY that names the request behind it. What is written has its cause in itself.
const HeaderCause = "Shoal-Cause"

// HistoryAll matches every history subject.
const HistoryAll = historyPrefix + ">"

// Hint is where the server republishes changes of a host's bucket, headers only; key may be ">".
func Hint(host, key string) string { return "shoal.hint." + host + "." + key }

// Event is the hint that a resource of an account, or its status, changed; each part may be "*".
func Event(account, kind, id string) string { return "shoal.event." + account + "." + kind + "." + id }

// EventsOf matches every event of an account.
func EventsOf(account string) string { return "shoal.event." + account + ".>" }

// EventAll matches every event.
const EventAll = "shoal.event.>"

// API is the subject of one operation as a caller requests it.
func API(caller, kind, verb string) string { return apiPrefix + caller + "." + kind + "." + verb }

// APIEndpoint is the subject of one operation as the controller serves it, for any caller.
func APIEndpoint(kind, verb string) string { return apiPrefix + "*." + kind + "." + verb }

// APIAll matches every API request.
const APIAll = apiPrefix + "*.>"

// ParseAPI splits the subject of an API request.
func ParseAPI(subject string) (caller, kind, verb string, err error) {
	rest, ok := strings.CutPrefix(subject, apiPrefix)
	p := strings.Split(rest, ".")
	if !ok || len(p) != 3 {
		return "", "", "", fmt.Errorf("parse api subject %q: want %s<caller>.<kind>.<verb>", subject, apiPrefix)
	}
	return p[0], p[1], p[2], nil
}

// AgentAPI is a request of an agent to the controller.
func AgentAPI(host, verb string) string { return "shoal.agentapi." + host + "." + verb }

// AgentAPIEndpoint is the same as the controller serves it, for any host.
func AgentAPIEndpoint(verb string) string { return "shoal.agentapi.*." + verb }

// AgentAPIAll matches every request of agents.
const AgentAPIAll = "shoal.agentapi.>"

// ParseAgentAPI splits the subject of an agent's request.
func ParseAgentAPI(subject string) (host, verb string, err error) {
	p := strings.Split(subject, ".")
	if len(p) != 4 || p[0] != "shoal" || p[1] != "agentapi" {
		return "", "", fmt.Errorf("parse agent api subject %q: want shoal.agentapi.<host>.<verb>", subject)
	}
	return p[2], p[3], nil
}

// Agent is a request of the controller to an agent; verb may be ">".
func Agent(host, verb string) string { return "shoal.agent." + host + "." + verb }

// Guest is a request of somebody without credentials.
func Guest(verb string) string { return "shoal.guest.v1." + verb }

// GuestAll matches every request of those without credentials.
const GuestAll = "shoal.guest.v1.*"

// AgentVerbDocument asks an agent for the document in its ledger.
const AgentVerbDocument = "document"

// Inbox is the prefix of the reply subjects that a user may use. NATS clients must be started with it, since
// nobody may listen to anybody else's answers.
func Inbox(user string) string { return "_INBOX_" + user }

// DirectGet is the request for batches of stored messages of a bucket, which needs no consumer.
func DirectGet(bucket string) string { return DirectGetStream(BucketStream(bucket)) }

// DirectGetStream is the same for any stream.
func DirectGetStream(stream string) string { return "$JS.API.DIRECT.GET." + stream }
