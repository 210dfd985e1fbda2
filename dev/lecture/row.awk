# Parts of a plan in one line: plan ... | awk -f row.awk -v parts='kept|total', a pattern of the parts' names
BEGIN { FS = "  +" }
{ sub(/ = .*/, "") }   # of the projected time the seconds are enough
$2 ~ parts && /^  [a-z]/ { line = line sprintf("   %s %10s", $2, $3) }
END { print line }
