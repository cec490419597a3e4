import java.io.BufferedReader;
import java.io.IOException;
import java.io.InputStreamReader;
import java.util.ArrayList;
import java.util.HashMap;
import java.util.List;
import java.util.Map;

/** Objects whose sum is asked for, before and after all of them are replaced. */
public class MemoryChurn {
    private static final Map<String, int[]> TABLE = new HashMap<>();

    private static long check() {
        long total = 0;
        for (var each : TABLE.entrySet()) {
            total += each.getKey().hashCode();
            for (int number : each.getValue()) {
                total = total * 31 + number;
            }
        }
        return total;
    }

    private static String churn() {
        long before = check();
        for (int round = 0; round < 10; round++) {
            List<int[]> others = new ArrayList<>();
            for (int i = 0; i < 20000; i++) {
                int[] made = new int[300];
                for (int number : made) {
                    if (number != 0) {
                        return "a new array is not zero";
                    }
                }
                made[1] = i;
                others.add(made);
            }
            System.gc();
            for (int i = 0; i < others.size(); i++) {
                if (others.get(i)[1] != i) {
                    return "an object has changed";
                }
            }
            TABLE.replaceAll((key, value) -> value.clone());
        }
        return check() == before ? "same" : "the sum has changed";
    }

    public static void main(String[] arguments) throws IOException {
        for (int i = 0; i < 100000; i++) {
            TABLE.put("k" + i, new int[] {i, 2 * i, 3 * i});
        }
        System.out.println("ready");
        var input = new BufferedReader(new InputStreamReader(System.in));
        for (String line = input.readLine(); line != null; line = input.readLine()) {
            System.out.println(line.equals("churn") ? churn() : "" + check());
        }
    }
}
