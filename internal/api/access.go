package api

import (
	"crypto/sha256"
	"crypto/subtle"
	"errors"
	"fmt"
	"net/url"
	"os"
	"slices"
	"strings"

	"github.com/gofiber/fiber/v2"
	"github.com/gofiber/fiber/v2/middleware/cors"
)

// Errors in the configuration of access to the service.
var (
	// ErrToken is returned, wrapped, by ReadToken for a file without a usable token.
	ErrToken = errors.New("unusable token file")
	// ErrOrigin is returned, wrapped, by New for an invalid origin in Options.Origins.
	ErrOrigin = errors.New("unusable origin")
)

// minTokenBytes is the minimum length of a token. Shorter tokens are easy to guess.
const minTokenBytes = 16

// ReadToken returns the bearer token in a file. The file must have a single line of 16
// or more letters, digits and the other characters that RFC 6750 allows. Otherwise
// ReadToken returns ErrToken, wrapped.
func ReadToken(path string) (string, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return "", fmt.Errorf("%w: %w", ErrToken, err)
	}
	token := strings.TrimSpace(string(data))
	if len(token) < minTokenBytes {
		return "", fmt.Errorf("%w: %s has %d characters, expected at least %d", ErrToken, path, len(token), minTokenBytes)
	}
	const allowed = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-._~+/="
	if i := strings.IndexFunc(token, func(r rune) bool { return !strings.ContainsRune(allowed, r) }); i >= 0 {
		return "", fmt.Errorf("%w: character %d of %s is not a letter, a digit or one of -._~+/=", ErrToken, i+1, path)
	}
	return token, nil
}

// openPaths are the paths that need no token: the probes, and the page, which asks for
// the token. Metrics need one because they expose what the service does.
var openPaths = []string{pathHealth, pathLive, pathReady, pathInferenceLive, pathInferenceReady, pathPage}

// authorize returns a middleware that rejects requests without the token, except for
// openPaths. It compares hashes, so that its timing depends neither on the token's
// content nor on its length.
func (s *Server) authorize(token string) fiber.Handler {
	want := sha256.Sum256([]byte(token))
	return func(c *fiber.Ctx) error {
		if slices.Contains(openPaths, c.Path()) || strings.HasPrefix(c.Path(), pathPageFiles) {
			return c.Next()
		}
		scheme, given, _ := strings.Cut(c.Get(fiber.HeaderAuthorization), " ")
		got := sha256.Sum256([]byte(strings.TrimSpace(given)))
		if same := subtle.ConstantTimeCompare(want[:], got[:]) == 1; same && strings.EqualFold(scheme, "Bearer") {
			return c.Next()
		}
		c.Set(fiber.HeaderWWWAuthenticate, `Bearer realm="`+ServiceName+`"`)
		return s.rejectUnread(c, errNoToken)
	}
}

// corsHandler returns a middleware that allows pages of the origins to read answers. It
// returns ErrOrigin, wrapped, for an invalid origin.
func corsHandler(origins []string) (fiber.Handler, error) {
	for _, o := range origins {
		if o == "*" {
			continue
		}
		u, err := url.Parse(o)
		if err != nil || (u.Scheme != "http" && u.Scheme != "https") || u.Host == "" || u.Scheme+"://"+u.Host != o || strings.ContainsAny(o, "*, ") {
			return nil, fmt.Errorf("%w: %q, expected an origin such as https://example.org, or *", ErrOrigin, o)
		}
	}
	list := strings.Join(origins, ",")
	if slices.Contains(origins, "*") {
		list = "*"
	}
	const day = 24 * 60 * 60
	return cors.New(cors.Config{
		AllowOrigins: list,
		AllowMethods: "GET,HEAD,POST,PUT,PATCH,DELETE",
		AllowHeaders: strings.Join([]string{fiber.HeaderAuthorization, fiber.HeaderContentType, fiber.HeaderXRequestID, headerBinaryLength, headerLastEventID}, ","),
		ExposeHeaders: strings.Join([]string{fiber.HeaderXRequestID, fiber.HeaderRetryAfter, fiber.HeaderLocation, fiber.HeaderETag, fiber.HeaderContentDisposition, headerTrainingEnded, headerTrainingEpochs, headerTrainingWarnings,
			headerCalibrationImages, headerCalibrationFalseAlarms, headerCalibrationShift, headerCalibrationWarnings, headerBinaryLength}, ","),
		MaxAge: day,
	}), nil
}
