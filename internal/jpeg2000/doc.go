// Package jpeg2000 decodes JPEG 2000 (ITU-T T.800, part 1), reversible and irreversible,
// of up to 16 bits and up to 4 components of one size, for DICOM. It decodes untrusted
// bytes: memory is bounded by the number of samples and the length of the file, one tile
// at a time. Regions of interest, packed packet headers, changes of the progression order
// and high-throughput coding (part 15) are not read.
package jpeg2000
