package release

import "context"

// Tidy is one round of Run.
func (s *Service) Tidy(ctx context.Context) error { return s.tidy(ctx) }
