package journal

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

// Session reads a stream in order until anything happens that could have cost a message: a reconnect, a missed
// heartbeat, a lost consumer, a gap. It then ends, and whoever runs it decides where to go on. The consumers of nats.go
// that go on by themselves resume at the last sequence plus one, which silently skips messages when the stream itself
// went back.
type Session struct {
	JS     jetstream.JetStream
	Stream string
	// From is the first sequence to read, at least 1; 0 with LastPerSubject.
	From uint64
	// LastPerSubject starts with the last message of every subject.
	LastPerSubject bool
	// Since is the time of the first message to read, in place of From; Filters restrict it to some subjects.
	Since   time.Time
	Filters []string
	// Begin is told how many messages are there when the session starts. Nil for none.
	Begin func(pending uint64) error
	// Check is called before anything is read, and again whenever nothing came for a while. The session ends
	// with its error.
	Check func(context.Context) error
	// CheckEvery is that while; 30 s if it is zero.
	CheckEvery time.Duration
}

// Raw is a message of a stream.
type Raw struct {
	Subject string
	Seq     uint64
	At      time.Time
	Header  nats.Header
	Data    []byte
	// Pending is how many more messages were there when this one was sent.
	Pending uint64
}

// ErrStop is returned by a session's function to end it without error.
var ErrStop = errors.New("stop reading")

// errReconnected ends a session: what was sent meanwhile may differ from what was read before.
var errReconnected = errors.New("the connection to NATS was lost and made again")

// errGap ends a session whose consumer skipped something.
var errGap = errors.New("a message was lost on its way")

// Limits of one session: what the client holds ahead of the function, and how long the server keeps the consumer of a
// reader that is gone.
const (
	sessionBytes     = 16 << 20
	sessionHeartbeat = 2 * time.Second
	sessionIdle      = time.Minute
	requestTimeout   = 5 * time.Second
)

// Run calls fn for every message in order. It returns nil after ErrStop, otherwise the reason for its end.
func (s Session) Run(ctx context.Context, fn func(Raw) error) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	nc := s.JS.Conn()
	changed := nc.StatusChanged(nats.CONNECTED, nats.CLOSED)
	defer nc.RemoveStatusListener(changed)
	watched := make(chan struct{})
	go func() {
		defer close(watched)
		select {
		case <-changed:
			cancel(errReconnected)
		case <-ctx.Done():
		}
	}()
	defer func() { cancel(nil); <-watched }()

	err := s.run(ctx, fn)
	if errors.Is(err, ErrStop) {
		return nil
	}
	if cause := context.Cause(ctx); cause != nil && errors.Is(err, context.Canceled) {
		err = cause
	}
	return fmt.Errorf("read stream %s: %w", s.Stream, err)
}

func (s Session) run(ctx context.Context, fn func(Raw) error) error {
	if s.Check != nil {
		if err := s.Check(ctx); err != nil {
			return err
		}
	}
	cfg := jetstream.ConsumerConfig{
		DeliverPolicy: jetstream.DeliverByStartSequencePolicy, OptStartSeq: s.From,
		AckPolicy: jetstream.AckNonePolicy, MemoryStorage: true, Replicas: 1, InactiveThreshold: sessionIdle,
	}
	if s.LastPerSubject {
		cfg.DeliverPolicy, cfg.OptStartSeq, cfg.FilterSubject = jetstream.DeliverLastPerSubjectPolicy, 0, ">"
	}
	if !s.Since.IsZero() {
		cfg.DeliverPolicy, cfg.OptStartSeq, cfg.OptStartTime = jetstream.DeliverByStartTimePolicy, 0, &s.Since
	}
	if len(s.Filters) > 0 {
		cfg.FilterSubjects = s.Filters
	}
	short, cancel := context.WithTimeout(ctx, requestTimeout)
	consumer, err := s.JS.CreateConsumer(short, s.Stream, cfg)
	cancel()
	if err != nil {
		return fmt.Errorf("create consumer: %w", err)
	}
	defer func() {
		// The server would find out by itself after a minute.
		short, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
		defer cancel()
		if s.JS.Conn().IsConnected() {
			_ = s.JS.DeleteConsumer(short, s.Stream, consumer.CachedInfo().Name)
		}
	}()
	if s.Begin != nil {
		if err := s.Begin(consumer.CachedInfo().NumPending); err != nil {
			return err
		}
	}
	messages, err := consumer.Messages(
		jetstream.PullMaxBytes(sessionBytes),
		jetstream.PullHeartbeat(sessionHeartbeat), jetstream.WithMessagesErrOnMissingHeartbeat(true))
	if err != nil {
		return fmt.Errorf("start consumer: %w", err)
	}
	defer messages.Stop()
	every := s.CheckEvery
	if every == 0 {
		every = 30 * time.Second
	}
	for delivered := uint64(1); ; delivered++ {
		m, err := s.next(ctx, messages, every)
		if err != nil {
			return err
		}
		meta, err := m.Metadata()
		if err != nil {
			return fmt.Errorf("read metadata: %w", err)
		}
		if meta.Sequence.Consumer != delivered {
			return errGap
		}
		if err := ctx.Err(); err != nil {
			return err
		}
		if err := fn(Raw{
			Subject: m.Subject(), Seq: meta.Sequence.Stream, At: meta.Timestamp.UTC(), Header: m.Headers(), Data: m.Data(),
			Pending: meta.NumPending,
		}); err != nil {
			return err
		}
	}
}

// next waits for a message, and has the stream checked while none comes.
func (s Session) next(ctx context.Context, messages jetstream.MessagesContext, every time.Duration) (jetstream.Msg, error) {
	for {
		short, cancel := context.WithTimeout(ctx, every)
		m, err := messages.Next(jetstream.NextContext(short))
		cancel()
		if !errors.Is(err, context.DeadlineExceeded) || ctx.Err() != nil {
			return m, err
		}
		if s.Check != nil {
			if err := s.Check(ctx); err != nil {
				return nil, err
			}
		}
	}
}
