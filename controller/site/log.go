package site

import (
	"fmt"

	"github.com/rs/zerolog"
)

// serverLog passes the lines of the embedded server on. What the server calls a notice is routine to an operator of
// Shoal.
type serverLog struct{ log zerolog.Logger }

// Noticef implements server.Logger.
func (l serverLog) Noticef(f string, v ...any) { l.line(zerolog.DebugLevel, f, v) }

// Warnf implements server.Logger.
func (l serverLog) Warnf(f string, v ...any) { l.line(zerolog.WarnLevel, f, v) }

// Errorf implements server.Logger.
func (l serverLog) Errorf(f string, v ...any) { l.line(zerolog.ErrorLevel, f, v) }

// Fatalf implements server.Logger. Open notices that the server did not start.
func (l serverLog) Fatalf(f string, v ...any) { l.line(zerolog.ErrorLevel, f, v) }

// Debugf implements server.Logger.
func (l serverLog) Debugf(f string, v ...any) { l.line(zerolog.TraceLevel, f, v) }

// Tracef implements server.Logger.
func (l serverLog) Tracef(f string, v ...any) { l.line(zerolog.TraceLevel, f, v) }

func (l serverLog) line(level zerolog.Level, f string, v []any) {
	l.log.WithLevel(level).Str("text", fmt.Sprintf(f, v...)).Msg("nats server")
}
