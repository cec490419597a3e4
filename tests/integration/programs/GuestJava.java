import java.io.BufferedReader;
import java.io.FileDescriptor;
import java.io.FileInputStream;
import java.io.FileOutputStream;
import java.io.InputStreamReader;
import java.lang.reflect.Field;

/** Waits for a snapshot by the guest's protocol. Needs --add-opens java.base/java.io=ALL-UNNAMED. */
public class GuestJava {
    public static void main(String[] args) throws Exception {
        FileDescriptor socket = new FileDescriptor();
        Field number = FileDescriptor.class.getDeclaredField("fd");
        number.setAccessible(true);
        number.setInt(socket, Integer.parseInt(System.getenv("PYCRIU_NATIVE_GUEST_FD")));
        new FileOutputStream(socket).write("ready\n".getBytes());
        FileInputStream input = new FileInputStream(socket);
        if (new BufferedReader(new InputStreamReader(input)).readLine() == null) {
            System.exit(1);
        }
        System.out.println("started");
    }
}
