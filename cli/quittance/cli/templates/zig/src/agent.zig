//! Counts the words of a text and finds the most frequent one.
//!
//! Input   {"text": "..."}
//! Output  {"words":6,"unique":4,"top":"to","times":2}
//! Word    letters and digits; A to Z are taken as a to z. Every character beyond ASCII counts as a letter.
//! Fails   exit code 2 for a text without words or another input, 1 if memory or the output fails.

const std = @import("std");

const Input = struct { text: []const u8 };
const Output = struct { words: usize, unique: usize, top: []const u8, times: usize };

const bad_input = 2;

pub fn main(init: std.process.Init) !void {
    const memory = init.arena.allocator();
    var input_buffer: [4096]u8 = undefined;
    var output_buffer: [4096]u8 = undefined;
    var stdin = std.Io.File.stdin().readerStreaming(init.io, &input_buffer);
    var stdout = std.Io.File.stdout().writerStreaming(init.io, &output_buffer);

    const sent = try stdin.interface.allocRemaining(memory, .unlimited);
    const input = std.json.parseFromSliceLeaky(Input, memory, sent, .{}) catch
        fail("the input must be {\"text\": \"...\"}");
    const found = try count(memory, input.text) orelse fail("the text has no words");

    try std.json.Stringify.value(found, .{}, &stdout.interface);
    try stdout.interface.writeByte('\n');
    try stdout.interface.flush();
}

fn fail(why: []const u8) noreturn {
    std.debug.print("agent: {s}\n", .{why});
    std.process.exit(bad_input);
}

/// What is to be said of a text; null if it has no words.
fn count(memory: std.mem.Allocator, text: []const u8) !?Output {
    const lower = try std.ascii.allocLowerString(memory, text);
    var times: std.StringArrayHashMapUnmanaged(usize) = .empty; // in the order in which words come first
    var words: usize = 0;
    var begin: usize = 0;
    for (0..lower.len + 1) |at| {
        if (at < lower.len and inWord(lower[at])) continue;
        if (at > begin) {
            const entry = try times.getOrPutValue(memory, lower[begin..at], 0);
            entry.value_ptr.* += 1;
            words += 1;
        }
        begin = at + 1;
    }
    if (words == 0) return null;
    var top: usize = 0;
    for (times.values(), 0..) |value, at| {
        if (value > times.values()[top]) top = at;
    }
    return .{ .words = words, .unique = times.count(), .top = times.keys()[top], .times = times.values()[top] };
}

fn inWord(byte: u8) bool {
    return std.ascii.isAlphanumeric(byte) or byte > 127;
}
