package api

import (
	"crypto/sha256"
	"crypto/subtle"
	"encoding/hex"
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
	// ErrToken is returned, wrapped, by ReadToken and ReadTokens for a file without a usable token.
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
	return token, checkToken(path, token)
}

// maxTokens is the maximum number of tokens in a file. Each request is compared with all.
const maxTokens = 1000

// ReadTokens returns the bearer tokens in a file, one in each line, as ReadToken. Empty
// lines are ignored.
func ReadTokens(path string) ([]string, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrToken, err)
	}
	var tokens []string
	for i, line := range strings.Split(string(data), "\n") {
		token := strings.TrimSpace(line)
		if token == "" {
			continue
		}
		if err := checkToken(fmt.Sprintf("line %d of %s", i+1, path), token); err != nil {
			return nil, err
		}
		if slices.Contains(tokens, token) {
			return nil, fmt.Errorf("%w: line %d of %s has the token of an earlier line", ErrToken, i+1, path)
		}
		if tokens = append(tokens, token); len(tokens) > maxTokens {
			return nil, fmt.Errorf("%w: %s has more than %d tokens", ErrToken, path, maxTokens)
		}
	}
	if len(tokens) == 0 {
		return nil, fmt.Errorf("%w: %s has no tokens, expected one in each line", ErrToken, path)
	}
	return tokens, nil
}

// checkToken returns ErrToken, wrapped, for an unusable token. The place is part of the
// error; the token is not.
func checkToken(place, token string) error {
	if len(token) < minTokenBytes {
		return fmt.Errorf("%w: %s has %d characters, expected at least %d", ErrToken, place, len(token), minTokenBytes)
	}
	const allowed = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-._~+/="
	if i := strings.IndexFunc(token, func(r rune) bool { return !strings.ContainsRune(allowed, r) }); i >= 0 {
		return fmt.Errorf("%w: character %d of %s is not a letter, a digit or one of -._~+/=", ErrToken, i+1, place)
	}
	return nil
}

// openPaths are the paths that need no token: the probes, and the page, which asks for
// the token. Metrics need one because they expose what the service does.
var openPaths = []string{pathHealth, pathLive, pathReady, pathInferenceLive, pathInferenceReady, pathPage}

// authorize returns a middleware that rejects requests without one of the tokens, except
// for openPaths, and records the caller. It compares hashes, and with all tokens, so that
// its timing depends neither on their content nor on their length.
func (s *Server) authorize(tokens []string) fiber.Handler {
	want := make([][sha256.Size]byte, len(tokens))
	for i, token := range tokens {
		want[i] = sha256.Sum256([]byte(token))
	}
	return func(c *fiber.Ctx) error {
		if slices.Contains(openPaths, c.Path()) || strings.HasPrefix(c.Path(), pathPageFiles) {
			return c.Next()
		}
		scheme, given, _ := strings.Cut(c.Get(fiber.HeaderAuthorization), " ")
		got, same := sha256.Sum256([]byte(strings.TrimSpace(given))), 0
		for i := range want {
			same |= subtle.ConstantTimeCompare(want[i][:], got[:])
		}
		if same == 1 && strings.EqualFold(scheme, "Bearer") {
			c.Locals(callerKey, hex.EncodeToString(got[:]))
			return c.Next()
		}
		c.Set(fiber.HeaderWWWAuthenticate, `Bearer realm="`+ServiceName+`"`)
		return s.rejectUnread(c, errNoToken)
	}
}

// callerOf returns the hash of a request's token in hexadecimal, or "" for a service
// without tokens.
func callerOf(c *fiber.Ctx) string {
	caller, _ := c.Locals(callerKey).(string)
	return caller
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
		AllowHeaders: strings.Join([]string{fiber.HeaderAuthorization, fiber.HeaderContentType, fiber.HeaderXRequestID, headerBinaryLength, headerLastEventID, headerJobID, headerKey}, ","),
		ExposeHeaders: strings.Join([]string{fiber.HeaderXRequestID, fiber.HeaderRetryAfter, fiber.HeaderLocation, fiber.HeaderETag, fiber.HeaderContentDisposition, headerJobID, headerReplayed, headerTrainingEnded, headerTrainingEpochs, headerTrainingWarnings,
			headerCalibrationImages, headerCalibrationFalseAlarms, headerCalibrationShift, headerCalibrationWarnings, headerBinaryLength}, ","),
		MaxAge: day,
	}), nil
}
